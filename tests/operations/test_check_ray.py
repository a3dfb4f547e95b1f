"""What ``check`` says of Ray. On real nodes: tests/end_to_end/test_ray.py."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from replicator.config.engine import Ray
from replicator.engine.ray import probe
from replicator.engine.ray.probe import Node, Probed, Response, ask, different, respond, versions
from replicator.errors import ConfigError, TransientError
from replicator.operations import check_ray
from replicator.operations.check_ray import of_cluster, on_this_machine, ray_findings
from replicator.operations.finding import failed
from tests.engine.test_ray import PLAN, RayError

HERE = Response(versions())
NODES = (Node("aaaaaaaaaa", "near", 4.0), Node("bbbbbbbbbb", "far", 2.0))


def said(workers: int, responses: dict[str, Response], silent: dict[str, str] | None = None) -> list[tuple[str, str]]:
    found = of_cluster(workers, Probed(NODES, responses, silent or {}))
    return [(finding.verdict, finding.text) for finding in found]


def test_nodes_that_are_fit_are_counted_with_their_cpus() -> None:
    assert said(2, {node.id: HERE for node in NODES}) == [
        ("ok", "2 nodes with 6 CPUs for 2 workers"),
        ("ok", "node near (aaaaaaaa) has the same versions and hook, and reaches source and target"),
        ("ok", "node far (bbbbbbbb) has the same versions and hook, and reaches source and target"),
    ]


def test_too_few_cpus_are_noted_also_those_that_are_left_after_the_loss_of_a_node() -> None:
    fit = {node.id: HERE for node in NODES}
    assert ("note", "2 workers would have no CPU") in said(8, fit)
    assert ("note", "after the loss of the largest node, some workers would have no CPU") in said(3, fit)


def test_a_node_that_could_run_no_worker_is_a_problem_that_says_why() -> None:
    older = Response({**HERE.versions, "replicator": "0.0.9", "zzz": "1"}, ("the source: unreachable",))
    found = said(2, {NODES[0].id: older}, {NODES[1].id: "ModuleNotFoundError: No module named 'replicator'"})
    assert [f for f in found if f[0] != "note"][1:] == [
        ("problem", "node near (aaaaaaaa): the source: unreachable"),
        (
            "problem",
            f"node near (aaaaaaaa) has replicator 0.0.9 instead of {versions()['replicator']}, zzz 1 instead of none",
        ),
        ("problem", "node far (bbbbbbbb) cannot run replicator: ModuleNotFoundError: No module named 'replicator'"),
    ]
    assert different({"a": "1"}, {}) == ["a is missing instead of 1"]


def test_on_this_machine_cpus_are_compared_with_workers() -> None:
    assert [f.verdict for f in on_this_machine(2, 2, "2.60.0")] == ["ok"]
    assert [f.verdict for f in on_this_machine(3, 2, "2.60.0")] == ["ok", "note"]


def test_a_missing_ray_is_found_without_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise ConfigError("engine.type: Ray is not installed")

    monkeypatch.setattr(check_ray, "check_installed", missing)
    with pytest.raises(ConfigError, match="Ray is not installed"):
        list(ray_findings(replace(PLAN.config, engine=Ray(address="h:1")), None))


def test_a_run_would_end_where_no_cluster_answers_and_retry_where_another_server_does_not() -> None:
    cluster = failed("engine", TransientError("engine.address: no Ray cluster answers at h:1: refused"))
    assert (cluster.subject, cluster.verdict) == ("engine.address", "unreachable")
    assert cluster.do.endswith("the cluster is up and lets this machine connect; a run would end")
    assert failed("source", TransientError("no route")).do.endswith("a run would retry until then")


def test_a_node_names_everything_that_a_worker_there_could_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any) -> None:
        raise TransientError("no route")

    @contextlib.contextmanager
    def refused(_: Any) -> Iterator[Any]:
        yield SimpleNamespace(check=lambda _: ["target.schema: not permitted"]), SimpleNamespace(read=unreachable)

    def edited(_: Any) -> None:
        raise ConfigError("transform: is not what this run was started with")

    for name, instead in {"describe_table": unreachable, "ends": refused, "hook_of": edited}.items():
        monkeypatch.setattr(probe, name, instead)
    monkeypatch.setattr(probe, "connect", lambda _: None)
    assert respond(PLAN).problems == (
        "transform: is not what this run was started with",
        "the source: no route",
        "target.schema: not permitted",
        "the target: no route",
    )


def test_every_node_with_cpus_is_asked_and_those_that_do_not_respond_are_named() -> None:
    results: dict[str, Any] = {"a": HERE, "b": RayError("traceback\nModuleNotFoundError: replicator"), "c": None}

    def nodes() -> list[dict[str, Any]]:
        common = {"NodeManagerHostname": "n", "Alive": True}
        some = [{**common, "NodeID": id, "Resources": {"CPU": 2.0}} for id in results]
        return [*some, {**some[0], "NodeID": "dead", "Alive": False}, {**some[0], "NodeID": "head", "Resources": {}}]

    def get(call: str) -> Any:
        if isinstance(results[call], Exception):
            raise results[call]
        return results[call]

    strategies = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda id, soft: id)
    ray = SimpleNamespace(
        nodes=nodes,
        remote=lambda _: SimpleNamespace(
            options=lambda **how: SimpleNamespace(remote=lambda _: how["scheduling_strategy"])
        ),
        wait=lambda calls, **_: ([c for c in calls if results[c]], [c for c in calls if not results[c]]),
        get=get,
        exceptions=SimpleNamespace(RayError=RayError),
        util=SimpleNamespace(scheduling_strategies=strategies),
    )
    found = ask(ray, PLAN)
    assert [node.id for node in found.nodes] == ["a", "b", "c"]
    assert found.responses == {"a": HERE}
    assert found.silent == {"b": "ModuleNotFoundError: replicator", "c": "no response within 60 seconds"}
