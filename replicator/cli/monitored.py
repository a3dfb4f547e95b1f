"""Connects a run to its monitoring and its own verification passes, if the config or ``--listen`` asks for them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from replicator.errors import ConfigError

if TYPE_CHECKING:
    from replicator.config.monitoring import Address
    from replicator.config.settings import Config
    from replicator.engine.several import PipelineRun
    from replicator.monitoring.board import Board
    from replicator.monitoring.monitor import Monitor
    from replicator.pipeline.progress import Progress

log = logging.getLogger(__name__)


@contextlib.contextmanager
def monitored(config: Config, path: str, listen: str | None, observe: Callable[[Progress], None]) -> Iterator[Any]:
    """Serves the monitoring, if it is wanted; yields the receivers of what the run reports."""
    address = _address(config, listen)
    if address is None:
        yield {"observe": observe}
        return
    from replicator.monitoring.server import monitor_of, serving, subject_of

    monitor = monitor_of(subject_of(config, path))
    with serving(monitor, address):
        yield _receivers(monitor, observe)


@contextlib.contextmanager
def monitored_alone(
    config: Config, path: str, listen: str | None, observe: Callable[[Progress], None]
) -> Iterator[Any]:
    """Like ``monitored``. One of several targets, which this process runs alone, is not served where the process of the
    others is: that one need not be stopped to repair this one.
    """
    if listen is not None or config.of_targets is None or config.monitoring is None:
        with monitored(config, path, listen, observe) as receivers:
            yield receivers
        return
    from replicator.monitoring.server import PortInUse

    with contextlib.ExitStack() as stack:
        try:
            receivers = stack.enter_context(monitored(config, path, listen, observe))
        except PortInUse as e:
            log.warning(
                "monitoring disabled for target",
                extra={"reason": str(e), "do": "to see this run, give it a port: --listen"},
            )
            receivers = {"observe": observe}
        yield receivers


@contextlib.contextmanager
def boards(configs: Sequence[Config], listen: str | None) -> Iterator[Callable[[Config], Board | None]]:
    """Serves the pipelines of a process that share an address together: yields what tells the board of a
    config, if it has one.
    """
    addresses = [_address(config, listen) for config in configs]
    shared = [a for a in dict.fromkeys(addresses) if a is not None and (listen is not None or addresses.count(a) > 1)]
    with contextlib.ExitStack() as stack:
        found: dict[Address, Board] = {}
        for address in shared:
            from replicator.monitoring.server import serving_several

            found[address] = stack.enter_context(serving_several(address))
        yield lambda config: found.get(address) if (address := _address(config, listen)) is not None else None


@contextlib.contextmanager
def shown(config: Config, path: str, board: Board | None, observe: Callable[[Progress], None]) -> Iterator[Any]:
    """Like ``monitored``, of one of several pipelines; on the ``board``, if there is one."""
    if board is None:
        with monitored(config, path, None, observe) as receivers:
            yield receivers
        return
    from replicator.monitoring.server import monitor_of, subject_of

    monitor = monitor_of(subject_of(config, path))
    board.show(monitor)
    yield _receivers(monitor, observe)


def on_board(run: PipelineRun, config: Config, board: Board | None) -> PipelineRun:
    """The run, on the ``board`` from its start to its end, also while there is nothing to tell of its pipeline yet."""
    if board is None:
        return run

    def work() -> None:
        with board.running(_monitor(config, run.name.rpartition("/")[2])):
            run.work()

    return replace(run, work=work)


def refused(config: Config, board: Board | None) -> None:
    """Show that the pipeline of this config could not be started."""
    if board is not None:
        board.refused(_monitor(config, config.pipeline))


def _monitor(config: Config, pipeline: str) -> Monitor:
    from replicator.monitoring.server import monitor_of, subject_of

    return monitor_of(replace(subject_of(config, str(config.path)), pipeline=pipeline))


def _receivers(monitor: Monitor, observe: Callable[[Progress], None]) -> Mapping[str, Any]:
    def both(progress: Progress) -> None:
        monitor.observe(progress)
        observe(progress)

    return {"observe": both, "measurements": monitor}


def audited(config: Config, more: Mapping[str, Any]) -> Mapping[str, Any]:
    """The receivers, and the run's own verification passes if they are wanted."""
    if config.verify is None:
        return more
    from replicator.operations.audit import Audit

    audit = Audit(config)
    return {**more, "observe": audit.observing(more["observe"]), "beside": audit.beside}


def _address(config: Config, listen: str | None) -> Address | None:
    """Where to listen: ``--listen`` before the config. Other addresses than loopback only by the config."""
    if listen is None:
        return config.monitoring.address if config.monitoring is not None else None
    from replicator.config.monitoring import Address

    try:
        address = Address.parsed(listen)
    except ValueError as e:
        raise ConfigError(f"--listen: {e}") from e
    if not address.loopback:
        raise ConfigError(
            f"--listen: {address} is not a loopback address, and the page has no login. If others may see it, say "
            f"so in the config: monitoring: {{listen: {address}}}"
        )
    return address
