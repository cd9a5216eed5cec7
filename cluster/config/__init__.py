"""The one YAML of a cluster. `load_config` raises `ConfigProblems` with every mistake, its line and a fix."""

from cluster.config.base import AUTO
from cluster.config.file import load_config, parse_config
from cluster.config.policies import Rule
from cluster.config.problems import ConfigProblems, Problem
from cluster.config.schema import (
    AdapterConfig,
    AutoscaleConfig,
    BaseModelConfig,
    ClusterConfig,
    GatewayConfig,
    NodeClass,
    PoolConfig,
    RouterConfig,
    SchedulerConfig,
    adapter_name,
)

__all__ = [
    "AUTO",
    "AdapterConfig",
    "AutoscaleConfig",
    "BaseModelConfig",
    "ClusterConfig",
    "ConfigProblems",
    "GatewayConfig",
    "NodeClass",
    "PoolConfig",
    "Problem",
    "RouterConfig",
    "Rule",
    "SchedulerConfig",
    "adapter_name",
    "load_config",
    "parse_config",
]
