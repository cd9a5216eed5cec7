"""The `upstream` section of a pool: every mistake with a fix, no secret in any message."""

from __future__ import annotations

import pytest

from cluster.config import ConfigProblems
from cluster.cost import large_price, node_seconds, prices
from cluster.types import Price
from tests.configs import config_of, simulated

SECTION = {
    "base_url": "https://api.example.com/v1",
    "model": "vendor/large:latest",
    "api_key_env": "EXAMPLE_KEY",
    "prices": {"prompt_usd_per_mtok": 1.25, "output_usd_per_mtok": 10},
}
SECRET = "sk-verysecret"
SPEED = {"prompt_tokens_per_s": 7, "output_tokens_per_s": 8}


def hosted(**changes):
    """tests/configs.py, its large tier hosted; `upstream` is the section."""
    section = SECTION | changes.pop("upstream", {})
    pool = {
        "tier": "large",
        "base_model": "hosted",
        "node_class": "big",
        "engine": "upstream",
        "context_tokens": 8192,
        "upstream": section,
    }
    return simulated(
        **{"base_models__hosted": {"source": "upstream"}, "pools__reserve": pool | changes.pop("pool", {})}
        | changes
    )


def problems_of(raw) -> dict[str, str]:
    with pytest.raises(ConfigProblems) as caught:
        config_of(raw)
    return {each.path: str(each) for each in caught.value.problems}


def test_prices_are_the_list_prices_and_nodes_cost_nothing():
    config = config_of(hosted())
    assert large_price(config) == Price(1_250_000, 10_000_000)
    assert prices(config)["specialist"] == Price(100_000, 1_000_000)
    assert node_seconds(config.pools["reserve"], 1000, 1000) == 0


def test_what_is_free_has_the_smallest_price():
    config = config_of(hosted(upstream={"prices": {"prompt_usd_per_mtok": 0, "output_usd_per_mtok": 0}}))
    assert large_price(config) == Price(1, 1)


def test_throughput_is_estimated_and_may_be_given():
    assert (
        config_of(hosted(pool={"max_concurrency": 4})).pools["reserve"].throughput.output_tokens_per_s == 200
    )
    assert config_of(hosted(pool={"throughput": SPEED})).pools["reserve"].throughput.prompt_tokens_per_s == 7


def test_other_engines_still_need_theirs():
    assert "is missing" in problems_of(simulated(pools__reserve__throughput=None))["pools.reserve.throughput"]
    assert (
        "is missing"
        in problems_of(simulated(base_models__huge__parameters=None))["base_models.huge.parameters"]
    )


@pytest.mark.parametrize(
    "url",
    [
        "https://api.example.com/v1",
        "http://127.0.0.1:11434/v1",
        "http://localhost:8080/v1",
        "http://10.1.2.3/v1",
        "http://[::1]:8080/v1",
    ],
)
def test_addresses_that_may_be_used(url):
    assert config_of(hosted(upstream={"base_url": url})).pools["reserve"].upstream.base_url == url


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://api.example.com/v1", "allow_plain_http"),
        ("http://8.8.8.8/v1", "use https"),
        (f"https://user:{SECRET}@api.example.com/v1", "api_key_env"),
        (f"https://api.example.com/v1?key={SECRET}", "query"),
        ("https://api.example.com/v1#x", "fragment"),
        ("ftp://api.example.com", "https://HOST/v1"),
        ("file:///etc/passwd", "https://HOST/v1"),
        ("https://", "https://HOST/v1"),
        ("https://x:99999/v1", "https://HOST/v1"),
        ("https://x y/v1", "https://HOST/v1"),
        ("https://[::1/v1", "https://HOST/v1"),
        ("", "https://HOST/v1"),
    ],
)
def test_addresses_that_may_not(url, words):
    problem = problems_of(hosted(upstream={"base_url": url}))["pools.reserve.upstream.base_url"]
    assert words in problem
    assert SECRET not in problem


def test_plain_http_on_request():
    section = {"base_url": "http://models.internal/v1", "allow_plain_http": True}
    assert config_of(hosted(upstream=section))


@pytest.mark.parametrize("value", [SECRET, "lower_case", "A B", ""])
def test_a_key_in_place_of_a_variable_is_refused_without_being_shown(value):
    problem = problems_of(hosted(upstream={"api_key_env": value}))["pools.reserve.upstream.api_key_env"]
    assert "name of an environment variable" in problem
    assert SECRET not in problem


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"upstream": {"api_key": SECRET}}, "pools.reserve.upstream.api_key"),
        ({"upstream": {"routes": ["embeddings"]}}, "pools.reserve.upstream.routes"),
        ({"upstream": {"routes": ["chat", "embeddings"]}}, "pools.reserve.upstream.routes"),
        ({"pool": {"upstream": None}}, "pools.reserve"),
        (
            {"pool": {"engine": "simulated", "simulated": {}, "throughput": SPEED}},
            "pools.reserve.upstream",
        ),
        ({"pool": {"gpus": 1}}, "pools.reserve"),
        ({"pool": {"adapter_slots": 2}}, "pools.reserve.adapters"),
        ({"pools__specialist__base_model": "hosted"}, "pools.specialist.base_model"),
        ({"upstream": {"model": "a\nb"}}, "pools.reserve.upstream.model"),
    ],
)
def test_what_does_not_fit_together(change, path):
    problems = problems_of(hosted(**change))
    assert path in problems, problems
    assert all(SECRET not in each for each in problems.values())


def test_an_upstream_may_stand_beside_an_own_pool_of_the_same_model():
    raw = hosted(pool={"base_model": "huge"})
    raw["pools"]["own"] = simulated()["pools"]["reserve"]
    assert config_of(raw).pools_of_tier("large") == ["reserve", "own"]
