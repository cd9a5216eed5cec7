"""`sprat render serve`: what Ray Serve reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from cluster.config import ClusterConfig, load_config
from cluster.errors import StartError
from deployments import app
from deployments.render.serve import serve_config
from deployments.render.text import as_text
from tests.configs import config_of, simulated
from tests.unit.conftest import Sprat

EXAMPLES = sorted((Path(__file__).parents[2] / "deployments/examples").glob("*.yaml"))
SECRETS = {
    "REDIS_URL": "redis://redis.internal:6379",
    "SPRAT_STORE_URL": "postgresql://sql.internal/sprat",
    "SPRAT_GATEWAY_TOKEN": "t" * 64,
    "SPRAT_PEPPER": "ab" * 32,
}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_a_serve_config_that_ray_accepts(example: Path) -> None:
    config = load_config(example)

    text = as_text("how to use it", [serve_config(config)])
    read = ServeDeploySchema.model_validate(yaml.safe_load(text))

    assert read.applications[0].name == "gateway"
    assert {each.name for each in read.applications[1:]} == {f"pool-{name}" for name in config.pools}
    for application in read.applications:
        assert ClusterConfig.model_validate(application.args["config"]) == config


def test_the_smallest_tier_comes_first_because_engines_of_a_node_load_one_after_the_other() -> None:
    names = [each["name"] for each in serve_config(config_of(simulated()))["applications"]]

    assert names == ["gateway", "pool-specialist", "pool-reserve"]


def test_urls_that_may_hold_passwords_are_left_out() -> None:
    config = config_of(
        simulated(
            redis={"url": "redis://user:hunter2@host"},
            store={"url": "postgresql://user:hunter2@host/sprat"},
        )
    )

    assert "hunter2" not in as_text("", [serve_config(config)])


def test_the_route_through_serves_proxy_is_rendered_where_the_yaml_asks_for_it() -> None:
    rendered = serve_config(config_of(simulated(gateway__serve_proxy_port=8100)))

    assert rendered["proxy_location"] == "EveryNode"
    assert rendered["http_options"] == {"host": "127.0.0.1", "port": 8100}
    assert rendered["applications"][0]["route_prefix"] == "/"


def test_builders_take_secrets_from_the_environment_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    gateway, specialist, _ = serve_config(config_of(simulated()))["applications"]

    built = app.build_gateway(gateway["args"])
    runtime = built._bound_deployment.init_args[0]

    assert runtime.redis_url == SECRETS["REDIS_URL"]
    assert runtime.pepper == bytes.fromhex(SECRETS["SPRAT_PEPPER"])
    assert SECRETS["SPRAT_GATEWAY_TOKEN"] not in repr(runtime)
    monkeypatch.setattr(app, "ray_nodes", list)
    assert app.build_pool(specialist["args"])._bound_deployment.name == "specialist"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"REDIS_URL": ""}, "REDIS_URL must be set on every node"),
        ({"SPRAT_GATEWAY_TOKEN": "short"}, "SPRAT_GATEWAY_TOKEN must have at least 32"),
        ({"SPRAT_PEPPER": "z" * 64}, "SPRAT_PEPPER must be hexadecimal"),
    ],
)
def test_a_node_without_secrets_says_which(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], words: str
) -> None:
    for name, value in (SECRETS | changed).items():
        monkeypatch.setenv(name, value)

    with pytest.raises(StartError, match=words):
        app.build_gateway(serve_config(config_of(simulated()))["applications"][0]["args"])


def test_a_pool_that_is_not_in_the_config_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    arguments = serve_config(config_of(simulated()))["applications"][1]["args"] | {"pool": "gone"}

    with pytest.raises(StartError, match="no pool 'gone'"):
        app.build_pool(arguments)


def test_the_verb_writes_the_file_with_a_header_that_says_how_to_use_it(sprat: Sprat, tmp_path: Path) -> None:
    target = tmp_path / "serve.yaml"

    finished = sprat("render", "serve", EXAMPLES[0], "-o", target)

    assert finished.code == 0, finished.err
    text = target.read_text()
    assert text.startswith("# Ray Serve config of the sprat cluster")
    assert "serve deploy THIS_FILE" in text
    ServeDeploySchema.model_validate(yaml.safe_load(text))
