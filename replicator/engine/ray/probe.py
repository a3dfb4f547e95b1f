"""What ``check`` asks the nodes of a Ray cluster: whether a worker could work there. Changes nothing."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from replicator import __version__
from replicator.aws.boto import connect
from replicator.config.engine import Ray
from replicator.config.settings import Config
from replicator.engine.assembly import ends
from replicator.engine.ray.actors import hook_of
from replicator.engine.ray.cluster import cluster
from replicator.engine.ray.reports import Plan
from replicator.engine.startup import RESUMING
from replicator.errors import ConfigError, ReplicatorError
from replicator.source.table import describe_table

PATIENCE = 60.0  # seconds for the responses of all nodes
_PACKAGE = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Node:
    """A node, as Ray knows it."""

    id: str
    host: str
    cpus: float


@dataclass(frozen=True, slots=True)
class Response:
    """What a node says. ``versions``: of Python, replicator and the packages that it needs."""

    versions: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Probed:
    """What is known of a cluster: its ``nodes`` with CPUs, what each said (by its id), and why others said nothing."""

    nodes: tuple[Node, ...]
    responses: Mapping[str, Response]
    silent: Mapping[str, str]


def versions() -> dict[str, str]:
    """Of Python, replicator, and the packages that it needs, in this process."""
    found = {"Python": platform.python_version(), "replicator": __version__}
    for requirement in importlib.metadata.requires("replicator") or ():
        name = _PACKAGE.match(requirement)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            if name is not None:
                found[name.group()] = importlib.metadata.version(name.group())
    return found


def respond(plan: Plan) -> Response:
    """Carried out on a node."""
    config = plan.config

    def problems() -> Iterator[str]:
        with _named("the hook") as failed:
            hook_of(plan)
        yield from failed
        with _named("the source") as failed:
            describe_table(connect(config.source), config.source.table)
        yield from failed
        with _named("the target") as failed, ends(config) as (target, checkpoints):
            failed += target.check(())
            checkpoints.read()
        yield from failed

    return Response(versions(), tuple(problems()))


@contextlib.contextmanager
def _named(what: str) -> Iterator[list[str]]:
    """Collects what is wrong with one of the things that a worker needs."""
    failed: list[str] = []
    try:
        yield failed
    except ConfigError as e:
        failed += e.problems
    except (ReplicatorError, OSError) as e:
        failed.append(f"{what}: {e}")


def probed(config: Config, fingerprint: str) -> Probed:
    """Ask all nodes at once. ConfigError or TransientError if the cluster cannot be joined."""
    assert isinstance(config.engine, Ray)
    plan = Plan(config, 0, (), None, RESUMING, fingerprint)
    with cluster(config.engine) as ray:
        return ask(ray, plan)


def ask(ray: Any, plan: Plan) -> Probed:
    alive = [node for node in ray.nodes() if node["Alive"]]
    nodes = tuple(Node(n["NodeID"], n["NodeManagerHostname"], n["Resources"].get("CPU", 0.0)) for n in alive)
    nodes = tuple(node for node in nodes if node.cpus)
    asked = {ray.remote(respond).options(**_on(ray, node)).remote(plan): node for node in nodes}
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=PATIENCE) if asked else ([], [])
    silent = {asked[call].id: f"no response within {PATIENCE:.0f} seconds" for call in late}
    responses: dict[str, Response] = {}
    for call in done:
        try:
            responses[asked[call].id] = ray.get(call)
        except ray.exceptions.RayError as e:  # replicator is missing there, or another one that has no such module
            silent[asked[call].id] = next(iter(str(e).strip().splitlines()[-1:]), type(e).__name__)
    return Probed(nodes, responses, silent)


def _on(ray: Any, node: Node) -> dict[str, Any]:
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node.id, soft=False)
    return {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": strategy}


def different(here: Mapping[str, str], there: Mapping[str, str]) -> Sequence[str]:
    """The versions of a node that are not those of this process, as a person reads them."""
    return [
        f"{name} {there.get(name, 'is missing')} instead of {here.get(name, 'none')}"
        for name in sorted(here.keys() | there.keys())
        if here.get(name) != there.get(name)
    ]
