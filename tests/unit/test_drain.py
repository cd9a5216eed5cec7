"""Which node is meant, and what Ray's refusal becomes."""

from __future__ import annotations

import os

import pytest

from cluster.errors import StartError
from deployments.drain import drain_node, node_named

HEAD = {"id": "aaaa1111aaaa1111", "labels": {"ray.io/node-id": "aaaa1111aaaa1111"}}
SPOT = {"id": "bbbb2222bbbb2222", "labels": {"sprat.node": "spot"}}


@pytest.mark.parametrize("name", ["spot", "bbbb", "bbbb2222bbbb2222"])
def test_a_node_by_its_label_or_its_id(name):
    assert node_named(name, [HEAD, SPOT]) == "bbbb2222bbbb2222"


def test_a_node_that_is_not_there_names_those_that_are():
    with pytest.raises(StartError, match=r"no node 'nope'.*aaaa1111aaaa, spot"):
        node_named("nope", [HEAD, SPOT])


def test_a_name_of_two_nodes_is_refused():
    with pytest.raises(StartError, match="2 nodes are called 'spot'"):
        node_named("spot", [HEAD, SPOT, SPOT | {"id": "cccc"}])


def test_the_only_node_cannot_be_left():
    with pytest.raises(StartError, match="is the only node"):
        node_named("spot", [SPOT])


def test_what_ray_says_is_passed_on():
    with pytest.raises(StartError, match=r"Ray refused to drain the node: .*negative"):
        drain_node("127.0.0.1:1", "ff" * 28, -1, os.environ)
