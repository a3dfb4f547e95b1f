"""What ``check`` says of Ray: its version, the CPUs, and whether each node could run a worker."""

from __future__ import annotations

import os
from collections.abc import Iterator

from replicator.config.engine import Ray
from replicator.config.settings import Config
from replicator.engine.ray.cluster import check_installed
from replicator.engine.ray.probe import Probed, different, probed, versions
from replicator.hooks.hook import Hook
from replicator.operations.finding import Finding


def ray_findings(config: Config, hook: Hook | None) -> Iterator[Finding]:
    """ConfigError if Ray is missing or does not fit, TransientError if no cluster answers."""
    engine = config.engine
    assert isinstance(engine, Ray)
    version = check_installed()
    if engine.address is None:
        yield from on_this_machine(engine.workers, os.cpu_count() or 1, version)
    else:
        yield from of_cluster(engine.workers, probed(config, hook.fingerprint if hook is not None else ""))


def on_this_machine(workers: int, cpus: int, version: str) -> Iterator[Finding]:
    yield Finding("engine", "ok", f"Ray {version}, started here for each run: {cpus} CPUs for {workers} workers")
    if workers > cpus:
        yield Finding("engine", "note", "more workers than CPUs take turns", "lower engine.workers")


def of_cluster(workers: int, found: Probed) -> Iterator[Finding]:
    cpus = sum(node.cpus for node in found.nodes)
    yield Finding("engine", "ok", f"{len(found.nodes)} nodes with {cpus:g} CPUs for {workers} workers")
    largest = max((node.cpus for node in found.nodes), default=0.0)
    if cpus < workers:
        yield Finding("engine", "note", f"{workers - cpus:g} workers would have no CPU", "add nodes, or fewer workers")
    elif cpus - largest < workers:
        text = "after the loss of the largest node, some workers would have no CPU"
        yield Finding("engine", "note", text, "add a node, or be content with fewer workers until it is back")
    here = versions()
    for node in found.nodes:
        name = f"node {node.host} ({node.id[:8]})"
        if node.id in found.silent:
            text = f"{name} cannot run replicator: {found.silent[node.id]}"
            yield Finding("engine", "problem", text, "install the same replicator there as here")
            continue
        response = found.responses[node.id]
        for problem in response.problems:
            yield Finding("engine", "problem", f"{name}: {problem}")
        if wrong := different(here, response.versions):
            text = f"{name} has {', '.join(wrong[:5])}{', …' if len(wrong) > 5 else ''}"
            yield Finding("engine", "problem", text, "install the same packages on all nodes")
        if not response.problems and not wrong:
            yield Finding("engine", "ok", f"{name} has the same versions and hook, and reaches source and target")
