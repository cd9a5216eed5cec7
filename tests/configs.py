"""Cluster YAMLs for tests."""

from __future__ import annotations

import copy
from typing import Any

import yaml

from cluster.config import ClusterConfig, parse_config

SIMULATED: dict[str, Any] = {
    "name": "test",
    "gateway": {"port": 8000},
    # Patient: only the tests of outages are about time.
    "redis": {"timeout_ms": 5000, "connect_timeout_ms": 5000},
    "scheduler": {},
    "node_classes": {
        "cheap": {"label_selector": {"sprat.node": "cheap"}, "fallbacks": [{}], "usd_per_hour": 0.36},
        "big": {"label_selector": {"sprat.node": "big"}, "fallbacks": [{}], "usd_per_hour": 3.6},
    },
    "base_models": {
        "tiny": {"source": "folder:/nowhere", "parameters": 1000},
        "huge": {"source": "folder:/nowhere", "parameters": 1000},
    },
    "adapters": {
        "intent@1": {"base_model": "tiny", "source": "folder:/nowhere", "rank": 8},
        "intent@2": {"base_model": "tiny", "source": "folder:/nowhere", "rank": 8},
    },
    "tiers": ["small", "large"],
    "pools": {
        "specialist": {
            "tier": "small",
            "base_model": "tiny",
            "node_class": "cheap",
            "engine": "simulated",
            "simulated": {"base_ttft_ms": 1, "prefill_tokens_per_s": 100000, "decode_tokens_per_s": 1000},
            "context_tokens": 256,
            "default_max_tokens": 16,
            "cpus": 0.1,
            "throughput": {"prompt_tokens_per_s": 1000, "output_tokens_per_s": 100},
            "adapters": ["intent@1", "intent@2"],
        },
        "reserve": {
            "tier": "large",
            "base_model": "huge",
            "node_class": "big",
            "engine": "simulated",
            "simulated": {"base_ttft_ms": 1, "prefill_tokens_per_s": 100000, "decode_tokens_per_s": 1000},
            "context_tokens": 2048,
            "default_max_tokens": 64,
            "cpus": 0.1,
            "throughput": {"prompt_tokens_per_s": 100, "output_tokens_per_s": 10},
        },
    },
    "router": {
        "default_tier": "large",
        "rules": [
            {"name": "narrow", "when": {"task": ["classify"]}, "to": "small"},
            {"name": "intent", "when": {"system_matches": "(?i)intent"}, "to": "intent"},
            {"name": "tools", "when": {"tools": True}, "to": "large"},
            {"name": "short", "when": {"prompt_tokens_up_to": 5}, "to": "small"},
        ],
    },
}


def simulated(**changes: Any) -> dict[str, Any]:
    """A copy of SIMULATED; `pools__specialist__tier="x"` sets one value (None removes it)."""
    raw = copy.deepcopy(SIMULATED)
    for path, value in changes.items():
        *parents, leaf = path.split("__")
        target = raw
        for parent in parents:
            target = target[parent]
        if value is None:
            target.pop(leaf, None)
        else:
            target[leaf] = value
    return raw


def config_of(raw: dict[str, Any]) -> ClusterConfig:
    return parse_config(yaml.safe_dump(raw, sort_keys=False), source="test.yaml")
