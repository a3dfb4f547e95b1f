"""Connects a run to its monitoring and its own verification passes, if the config or ``--listen`` asks for them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from replicator.errors import ConfigError

if TYPE_CHECKING:
    from replicator.config.monitoring import Address
    from replicator.config.settings import Config
    from replicator.pipeline.progress import Progress


@contextlib.contextmanager
def monitored(config: Config, path: str, listen: str | None, observe: Callable[[Progress], None]) -> Iterator[Any]:
    """Serves the monitoring, if it is wanted; yields the receivers of what the run reports."""
    address = _address(config, listen)
    if address is None:
        yield {"observe": observe}
        return
    from replicator.monitoring.server import monitor_of, serving, subject_of

    monitor = monitor_of(subject_of(config, path))

    def both(progress: Progress) -> None:
        monitor.observe(progress)
        observe(progress)

    with serving(monitor, address):
        yield {"observe": both, "measurements": monitor}


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
