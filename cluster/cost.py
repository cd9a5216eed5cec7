"""Money: a pool's price per token follows from its node's price and its measured throughput; that of an
upstream is its list price."""

from __future__ import annotations

import re
from decimal import Decimal

from cluster.config import ClusterConfig, NodeClass, PoolConfig
from cluster.tenants import MAX_MICRO_USD
from cluster.types import TOKENS_PER_PRICE_UNIT, Price

MICRO_USD_PER_USD = 1_000_000
SECONDS_PER_HOUR = 3600

AMOUNT = re.compile(r"[0-9]{1,12}(\.[0-9]{1,6})?")


def pool_price(pool: PoolConfig, node: NodeClass) -> Price:
    """Node price per second x share ÷ tokens per second, or the upstream's list price, in micro-USD per
    million tokens, at least 1."""
    if pool.upstream is not None:
        listed = pool.upstream.prices
        return Price(
            prompt_micro_usd_per_mtok=max(1, round(listed.prompt_usd_per_mtok * MICRO_USD_PER_USD)),
            output_micro_usd_per_mtok=max(1, round(listed.output_usd_per_mtok * MICRO_USD_PER_USD)),
        )
    micro_usd_per_s = node.paid_usd_per_hour * MICRO_USD_PER_USD / SECONDS_PER_HOUR * pool.node_share

    def per_mtok(tokens_per_s: float) -> int:
        return max(1, round(micro_usd_per_s / tokens_per_s * TOKENS_PER_PRICE_UNIT))

    return Price(
        prompt_micro_usd_per_mtok=per_mtok(pool.throughput.prompt_tokens_per_s),
        output_micro_usd_per_mtok=per_mtok(pool.throughput.output_tokens_per_s),
    )


def node_seconds(pool: PoolConfig, prompt_tokens: int, output_tokens: int) -> float:
    """What a call takes of its node (GPU-seconds where the node is one GPU), prefill and decode apart, when
    all slots are busy. Times the node's price per second this is the call's cost. 0 for an upstream."""
    if pool.upstream is not None:
        return 0.0
    throughput = pool.throughput
    busy_s = prompt_tokens / throughput.prompt_tokens_per_s + output_tokens / throughput.output_tokens_per_s
    return busy_s * pool.node_share


def prices(config: ClusterConfig) -> dict[str, Price]:
    return {
        name: pool_price(pool, config.node_classes[pool.node_class]) for name, pool in config.pools.items()
    }


def large_price(config: ClusterConfig) -> Price:
    """What "saved" is measured against: the first pool of the last (largest) tier."""
    return prices(config)[config.pools_of_tier(config.tiers[-1])[0]]


def micro_usd(text: str) -> int:
    """From an amount that a person wrote (`5`, `0.25`, `12.000001`), exactly. ValueError says what is wrong
    with it: not positive, more than six decimals, too large to count."""
    if not AMOUNT.fullmatch(text):
        raise ValueError(f"{text!r} is no amount of USD; write it as 5 or 0.25, with at most 6 decimals")
    amount = int(Decimal(text) * MICRO_USD_PER_USD)
    if not 0 < amount <= MAX_MICRO_USD:
        raise ValueError(f"{text} USD is not between 0.000001 and {MAX_MICRO_USD // MICRO_USD_PER_USD}")
    return amount


def usd(micro_usd: int) -> float:
    return micro_usd / MICRO_USD_PER_USD
