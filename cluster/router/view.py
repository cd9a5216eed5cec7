"""The fleet as the router sees it: pools with prices and limits, no load (that is the scheduler's)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from cluster.adapters.life import AdapterLife
from cluster.adapters.version import AdapterVersion
from cluster.config import ClusterConfig, adapter_name
from cluster.cost import large_price, prices
from cluster.types import Candidate, Price, RequestFeatures, RequestKind

FREE = Price(0, 0)
"""Of a call for which no model runs."""


@dataclass(frozen=True, slots=True)
class PoolView:
    name: str
    tier: str
    base_model: str
    adapters: tuple[str, ...]
    """All that may be asked for: those of the YAML, and those of the registry that its replicas may load."""
    price: Price
    context_tokens: int
    default_max_tokens: int
    task: RequestKind = RequestKind.GENERATE
    highest_rank: int = 0
    """Of adapters of the registry that its replicas load on demand; 0: they load none."""

    def loads(self, version: AdapterVersion) -> bool:
        return version.base_model == self.base_model and version.rank <= self.highest_rank

    def serves(self, kind: RequestKind) -> bool:
        asked = RequestKind.GENERATE if kind is RequestKind.COUNT else kind
        return asked in (self.task, RequestKind.TOKENIZE)

    def max_tokens(self, features: RequestFeatures) -> int:
        return self.default_max_tokens if features.max_tokens is None else features.max_tokens

    def fits(self, features: RequestFeatures, *, share: float = 1.0) -> bool:
        """Whether the longest prompt and its answer fit. `share` of the estimate: below 1 to be generous."""
        return features.longest_prompt_tokens * share + self.max_tokens(features) <= self.context_tokens

    def candidate(self, features: RequestFeatures, adapter: str | None) -> Candidate:
        """Cost is the worst case: all output tokens that the call may take."""
        max_tokens = self.max_tokens(features)
        outputs = max_tokens * features.sequences
        prompt_at_most = min(features.prompt_tokens_at_most, self.context_tokens * features.sequences)
        price = FREE if features.kind.is_free else self.price
        return Candidate(
            tier=self.tier,
            pool=self.name,
            base_model=self.base_model,
            adapter=adapter,
            price=price,
            max_tokens=max_tokens,
            estimated_cost_micro_usd=price.cost_micro_usd(features.prompt_tokens_estimate, outputs),
            worst_case_micro_usd=price.cost_micro_usd(prompt_at_most, outputs),
            context_tokens=self.context_tokens,
        )


@dataclass(frozen=True, slots=True)
class FleetView:
    """`tiers` run from the smallest to the largest. `declared`: the adapters of the YAML. `live`: name of an
    adapter of the registry → the version that answers to it."""

    tiers: tuple[str, ...]
    pools: tuple[PoolView, ...]
    large_price: Price
    declared: tuple[str, ...] = ()
    live: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, config: ClusterConfig) -> FleetView:
        price_of = prices(config)
        return cls(
            tiers=tuple(config.tiers),
            pools=tuple(
                PoolView(
                    name=name,
                    tier=pool.tier,
                    base_model=pool.base_model,
                    adapters=tuple(pool.adapters),
                    price=price_of[name],
                    context_tokens=pool.context_tokens,
                    default_max_tokens=pool.default_max_tokens,
                    task=RequestKind(pool.task),
                    highest_rank=pool.max_rank if pool.adapter_slots else 0,
                )
                for name, pool in config.pools.items()
            ),
            large_price=large_price(config),
            declared=tuple(dict.fromkeys(each for pool in config.pools.values() for each in pool.adapters)),
        )

    def with_registered(self, versions: Iterable[AdapterVersion]) -> FleetView:
        """The same fleet, with what the registry offers now beside the adapters of the YAML."""
        known = list(versions)
        return replace(
            self,
            pools=tuple(
                replace(
                    pool,
                    adapters=tuple(
                        dict.fromkeys(
                            [*pool.adapters, *(each.adapter_id for each in known if pool.loads(each))]
                        )
                    ),
                )
                for pool in self.pools
            ),
            live={each.name: each.adapter_id for each in known if each.state is AdapterLife.LIVE},
        )

    def adapters(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(adapter for pool in self.pools for adapter in pool.adapters))

    def live_names(self) -> tuple[str, ...]:
        """Names of the registry that stand for a version which some pool serves."""
        served = frozenset(self.adapters())
        return tuple(name for name, adapter in self.live.items() if adapter in served and name not in served)

    def base_models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(pool.base_model for pool in self.pools))

    def base_models_of(self, kind: RequestKind) -> tuple[str, ...]:
        """In the order of the YAML."""
        return tuple(dict.fromkeys(pool.base_model for pool in self.pools if pool.serves(kind)))

    def pools_of_tier(self, tier: str, kind: RequestKind = RequestKind.GENERATE) -> tuple[PoolView, ...]:
        """Those that serve `kind`, cheapest output first: for equal quality the cheaper pool is asked
        first."""
        return tuple(
            sorted(
                (pool for pool in self.pools if pool.tier == tier and pool.serves(kind)),
                key=lambda pool: (pool.price.output_micro_usd_per_mtok, pool.name),
            )
        )

    def cheapest_pool(self, target: str) -> PoolView:
        """That generates on a tier, base model or adapter. ValueError where none does."""
        adapter = self.resolve_adapter(target)
        serving = [
            pool
            for tier in self.tiers
            for pool in self.pools_of_tier(tier)
            if target in (tier, pool.base_model) or (adapter is not None and adapter in pool.adapters)
        ]
        if not serving:
            raise ValueError(f"no pool serves {target!r}")
        return serving[0]

    def tiers_above(self, tier: str) -> tuple[str, ...]:
        return self.tiers[self.tiers.index(tier) + 1 :]

    def resolve_adapter(self, name: str) -> str | None:
        """`name@n` is one version; `name` alone is the live one of the registry, else the highest one
        that the YAML gives to a pool."""
        adapters = self.adapters()
        if name in adapters:
            return name
        live = self.live.get(name)
        if live is not None:
            return live if live in adapters else None
        versions = [adapter for adapter in self.declared if adapter_name(adapter) == name and "@" in adapter]
        return max(versions, key=lambda adapter: int(adapter.split("@")[1])) if versions else None
