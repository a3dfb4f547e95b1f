"""``replicator run``: run a pipeline until stopped."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from replicator import __version__
from replicator.cli.output import configs_argument, engine_option, json_option, say
from replicator.engine.stop_event import Stop
from replicator.errors import ConfigError, StoppedEarly
from replicator.hooks.time_limit import EXIT_DEADLINE

if TYPE_CHECKING:
    from replicator.config.settings import Config
    from replicator.engine.run import Follow
    from replicator.hooks.hook import Hook

log = logging.getLogger(__name__)

GRACE = 8.0  # seconds that writes in flight get to finish after SIGTERM

until_option = click.option(
    "--until",
    type=click.Choice(["caught-up", "backfilled"]),
    help="Exit once the backfill and all records that existed at the start are stored; backfilled: once the backfill "
    "is, with the engine lambda, which follows the stream.",
)

schema_changes_option = click.option(
    "--apply-schema-changes",
    is_flag=True,
    help="Add columns (or fields) that are new in the config, and rescan the table to fill them.",
)


listen_option = click.option(
    "--listen",
    metavar="HOST:PORT",
    help="Serve metrics and a status page on this loopback address, e.g. 127.0.0.1:9464.",
)

remove_expired_option = click.option(
    "--remove-expired",
    is_flag=True,
    help="With ttl_deletes: ignore: allow a rescan to remove expired items that the target has kept.",
)


@click.command
@configs_argument
@until_option
@click.option(
    "--accept-hook-change", is_flag=True, help="Continue with a changed hook; existing documents stay as they are."
)
@schema_changes_option
@remove_expired_option
@engine_option
@listen_option
@json_option
@click.pass_context
def run(ctx: click.Context, /, configs: Sequence[str], target: str | None, as_json: bool, **how: Any) -> None:
    """Copy the table and follow its changes until stopped.

    Resumes where the last run stopped. Ctrl-C or SIGTERM finishes the writes in flight and exits within seconds; a
    second signal exits at once and loses nothing either. With --until, a run that is stopped before it got there exits
    with 7. A second run of the same pipeline takes over, and the first one stops.

    With several configs, their pipelines run in one process. One that fails does not end the others; the exit code is
    that of the most severe failure. During a rebuild, a config with replaces: runs the pipelines of both copies.
    """
    if len(configs) > 1 or _may_be_several(configs[0], target, how["engine"]):
        ctx.exit(_run_each(configs, as_json, target=target, resync=False, **how))
    run_until_stopped(configs[0], as_json, target=target, resync=False, **how)


def _may_be_several(path: str, target: str | None, engine: str | None) -> bool:
    """Whether the config may run several pipelines: for several targets, or both copies of a rebuild. Loading all
    others here would be slow.
    """
    try:
        text = Path(path).read_text(errors="replace")
    except OSError:
        return False  # loading it says why
    if "replaces" not in text and "targets" not in text:
        return False
    from replicator.config import settings

    configs = settings.load_each(path, engine=engine, target=target)
    return len(configs) > 1 or configs[0].replaces is not None


def run_until_stopped(
    path: str,
    as_json: bool,
    *,
    target: str | None = None,
    listen: str | None = None,
    engine: str | None = None,
    **how: Any,
) -> None:
    """What ``run``, and ``resync --now``, do."""
    say_first(path, as_json)
    from replicator.cli import live_view
    from replicator.cli.monitored import audited, monitored_alone
    from replicator.config import settings
    from replicator.engine.generations import resolved
    from replicator.engine.run import run as run_pipeline

    until = how["until"]
    stop = stop_on_signals(lambda: 0 if until is None else StoppedEarly.exit_code)
    loaded = settings.load(path, engine=engine, target=target)
    if loaded.replaces is not None:
        loaded = resolved(loaded)
    how["follow"] = _follow(loaded, until, is_resync=how.get("resync", False))
    with live_view.view(as_json, _title(loaded)) as observe, monitored_alone(loaded, path, listen, observe) as more:
        run_pipeline(loaded, stop=stop, **audited(loaded, more), **how)
        if not stop.is_set() and until != "backfilled":
            log.info("caught up", extra={"pipeline": loaded.pipeline})
    if until is not None and stop.is_set():
        raise _stopped_early(until, _named("CONFIG", target), is_resync=how.get("resync", False))


def _stopped_early(until: str, configs: str, *, is_resync: bool = False) -> StoppedEarly:
    before = "it had caught up" if until == "caught-up" else "the backfill was stored"
    again = "If the event snapshot started was not logged, the resync has not begun: repeat this command. Otherwise, to"
    return StoppedEarly(
        f"stopped before {before}, so the copy is not complete. {again if is_resync else 'To'} continue: "
        f"replicator run {configs} --until {until}"
    )


def _named(configs: str, target: str | None) -> str:
    return configs if target is None else f"{configs} --target {target}"


def _follow(config: Config, until: str | None, *, is_resync: bool) -> Follow | None:
    """The engine of the config; None: this process. ConfigError if it does not end like this.

    ``is_resync``: by ``resync --now``, which has no option ``--engine``.
    """
    from replicator.config.engine import Lambda, Ray

    if isinstance(config.engine, Lambda) != (until == "backfilled"):
        raise ConfigError(
            "engine.type: AWS Lambda follows the stream, not this command: add --until backfilled to copy what exists"
            + ("" if is_resync else ", or --engine local to follow it here")
            if until != "backfilled"
            else "--until backfilled: then AWS Lambda follows the stream, and this config has another engine: use "
            "--until caught-up" + ("" if is_resync else ", or add --engine lambda")
        )
    if isinstance(config.engine, Lambda):
        from replicator.engine.handover import follow as backfill

        return backfill
    if not isinstance(config.engine, Ray):
        return None
    from replicator.engine.ray.driver import follow

    return follow


def _run_each(
    paths: Sequence[str],
    as_json: bool,
    *,
    target: str | None,
    listen: str | None,
    engine: str | None = None,
    **how: Any,
) -> int:
    """Run the pipelines of several configs; the exit code. A config that cannot be loaded does not stop the others."""
    if how["until"] == "backfilled":
        raise ConfigError(
            "--until backfilled: hand over one pipeline at a time, each with a command of its own; with several "
            "targets, add --target NAME"
        )
    say_first(f"{len(paths)} pipelines" if len(paths) > 1 else paths[0], as_json)
    from replicator.cli import live_view
    from replicator.cli.monitored import audited, boards, on_board, refused, shown
    from replicator.config import settings
    from replicator.engine import generations, several
    from replicator.engine.run import run as run_pipeline
    from replicator.hooks import loading

    codes, ended = list[int](), list[str]()
    until, early = how["until"], StoppedEarly.exit_code
    stop = stop_on_signals(lambda: several.worst(codes if until is None else [*codes, early]))
    with live_view.several(as_json) as observer_of, contextlib.ExitStack() as stack:
        own = _loaded(
            paths, lambda path: _in_this_process(settings.load_each(path, engine=engine, target=target)), codes
        )
        loaded = _apart(own, codes)
        sharing = several.Sharing()
        loaders: dict[tuple[Path, str | None], Callable[[str, Path], Hook]] = {}
        board_of = stack.enter_context(boards(own, listen))
        started = {config.pipeline for config in loaded}
        for config in own:
            if config.pipeline not in started:
                refused(config, board_of(config))

        def work(config: Config, confirm: Callable[[], None]) -> None:
            with shown(config, str(config.path), board_of(config), observer_of(config.pipeline)) as more:
                more = audited(config, more)
                pages = sharing.of(config.source)
                # a copy that is exchanged starts anew, with the hook that it had: its file may have been edited since
                load = loaders.setdefault((config.path, config.target_name), functools.cache(loading.load))
                run_pipeline(config, stop=stop, confirm=confirm, pages=pages, load=load, **more, **how)
            log.info("stopped" if stop.is_set() else "caught up", extra={"pipeline": config.pipeline})
            if not stop.is_set():
                ended.append(config.pipeline)

        runs = [
            on_board(run, config, board_of(config)) for config in loaded for run in generations.runs(config, work, stop)
        ]
        several.run_each(runs, lambda _, code: codes.append(code))
    if until is not None and stop.is_set() and len(ended) < len(runs):
        codes.append(early)
    if several.worst(codes) == early:
        raise _stopped_early(until, _named("CONFIG..." if len(paths) > 1 else "CONFIG", target))
    return several.worst(codes)


def _in_this_process(configs: Sequence[Config]) -> Sequence[Config]:
    """ConfigError if the configs of a file want an engine that runs one pipeline for each process."""
    from replicator.config.engine import Lambda
    from replicator.engine.several import needs_own_process

    if len(configs) > 1 and isinstance(configs[0].engine, Lambda):
        raise ConfigError(
            f"{configs[0].path}: engine.type: AWS Lambda follows the stream, not this command: add --until backfilled "
            "--target NAME to copy what exists, or --engine local to follow it here"
        )
    if problem := needs_own_process(configs):
        raise ConfigError(f"{configs[0].path}: {problem}")
    return configs


def _loaded(paths: Sequence[str], load: Callable[[str], Sequence[Config]], codes: list[int]) -> list[Config]:
    """The configs; the exit codes of those that cannot be used are added to ``codes``."""
    from replicator.engine.several import log_failure
    from replicator.errors import ReplicatorError

    loaded: dict[str, Config] = {}
    path_of: dict[str, str] = {}
    for path in paths:
        try:
            configs = load(path)
            for config in configs:
                if config.pipeline in loaded:
                    first = path_of[config.pipeline]
                    problem = f"{path}: pipeline {config.pipeline!r} is also that of {first}; names must differ"
                    raise ConfigError(problem)
        except ReplicatorError as e:
            log_failure(e, config=path)
            codes.append(e.exit_code)
        else:
            loaded |= {config.pipeline: config for config in configs}
            path_of |= {config.pipeline: path for config in configs}
    for old, new in _replaced(loaded.values()):
        problem = f"{path_of[old]}: {path_of[new]} replaces it and runs both copies during a rebuild; leave it out"
        log_failure(ConfigError(problem), config=path_of[old])
        codes.append(ConfigError.exit_code)
        loaded.pop(old, None)  # another one may replace it, too
    return list(loaded.values())


def _apart(configs: Sequence[Config], codes: list[int]) -> list[Config]:
    """The configs but for those whose hooks could get modules of earlier ones; adds their exit codes to ``codes``."""
    from replicator.engine.generations import collisions
    from replicator.engine.several import log_failure

    found = collisions(configs)
    for pipeline, problem in found.items():
        config = next(config for config in configs if config.pipeline == pipeline)
        log_failure(ConfigError(problem), config=str(config.path), **_target(config))
        codes.append(ConfigError.exit_code)
    return [config for config in configs if config.pipeline not in found]


def _target(config: Config) -> Mapping[str, str]:
    return {} if config.target_name is None else {"target": config.target_name}


def _replaced(configs: Collection[Config]) -> Sequence[tuple[str, str]]:
    """The pipelines whose config is given although another one replaces it, and the pipelines of those."""
    from replicator.engine.generations import counterpart

    pairs: list[tuple[str, str]] = []
    for new in configs:
        if new.replaces is None:
            continue
        file = (new.base / new.replaces).resolve()
        old = counterpart(new.target_name, [config for config in configs if config.path.resolve() == file])
        pairs += [] if old is None else [(old.pipeline, new.pipeline)]
    return pairs


def _title(config: Config) -> str:
    tables = ", ".join(config.target.tables)
    return f"{config.pipeline}: DynamoDB {config.source.table} -> {config.target.type} {tables}"


def say_first(path: str, as_json: bool) -> None:
    """Print something while the libraries load."""
    from replicator import log as logs

    if as_json:
        logs.start(logs.JsonLines())
        log.info("starting", extra={"config": path, "version": __version__, "pid": os.getpid()})
    else:
        say(f"replicator {__version__}: {path}")


def stop_on_signals(code: Callable[[], int] = lambda: 0) -> Stop:
    """An event that SIGTERM and SIGINT set; the second signal exits at once.

    If the writes in flight are not stored within ``GRACE`` (the target hangs), the process exits without them, with
    the ``code`` for what has ended by then and what has not.
    """
    stop = Stop()
    leave: Callable[[int], None] = os._exit  # without any cleanup: the stored positions are valid at all times
    signaled = False

    def on_signal(number: int, _frame: object) -> None:
        nonlocal signaled
        if signaled:
            leave(128 + number)
        signaled = True  # first: the next signal can arrive anywhere below
        EXIT_DEADLINE.set(GRACE, lambda: leave(code()))
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    return stop
