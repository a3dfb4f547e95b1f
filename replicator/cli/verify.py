"""``replicator verify``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from replicator.cli.output import aside, config_argument, json_option, note, put, say

if TYPE_CHECKING:
    from replicator.operations.verify import Progress, Request, Tally
    from replicator.verification.differences import Finding
    from replicator.verification.verifier import Result

_MARKS = {"difference": "", "parked": "parked", "unconfirmed": "unconfirmed", "kept": "kept"}
_EVERY = 10.0  # seconds between progress lines where there is no terminal


class Share(click.ParamType):  # type: ignore[type-arg]
    """A percentage as a share: ``1%`` is 0.01."""

    name = "P%"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            share = float(str(value).removesuffix("%").strip()) / 100
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            self.fail(f"{value!r} is not a percentage; expected for example 1%", param, ctx)
        return share


@click.command
@config_argument
@click.option("--full", is_flag=True, help="Every item and every document.  [default]")
@click.option("--sample", type=Share(), help="A random part of the table, with the confidence of the result.")
@click.option("--key", help='Only the item with this key, as JSON, e.g. \'{"pk": "order#1"}\'; binary keys in base64.')
@click.option("--resume", is_flag=True, help="Continue a pass that was interrupted.")
@click.option("--repair", is_flag=True, help="Repair confirmed differences; needs a run that is up.")
@click.option(
    "--read-units", type=click.FloatRange(min=1), help="Read capacity units per second that may be used on the source."
)
@json_option
@click.pass_context
def verify(
    ctx: click.Context,
    config: str,
    target: str | None,
    full: bool,
    sample: float | None,
    key: str | None,
    resume: bool,
    repair: bool,
    read_units: float | None,
    as_json: bool,
) -> None:
    """Compare the source with the copy while both change.

    Reads every item, applies the hook, and compares the result with what the target stores; then looks for documents
    that should not be there. What differs is read again once every change from before that moment is stored, so that
    lag is never reported as a difference. This needs a run of the pipeline that is up.

    Prints each difference with its key and the names of its fields, never values. Exits with 0 if the copy equals the
    source, 6 if it does not or items are parked, 7 if that cannot be confirmed.
    """
    from replicator.config import settings as configs
    from replicator.config.engine import Lambda
    from replicator.engine.context import Environment
    from replicator.engine.generations import resolved
    from replicator.engine.stop_event import Stop
    from replicator.errors import ConfigError
    from replicator.hooks.time_limit import HookLimit
    from replicator.operations.verify import Request
    from replicator.operations.verify import verify as verified
    from replicator.pipeline.lanes import NO_REPAIR

    if sum((full, sample is not None, key is not None)) > 1:
        raise ConfigError("--full, --sample and --key exclude each other")
    if resume and key is not None:
        raise ConfigError("--resume: a single item is not a pass to continue")
    request = Request(
        share=1.0 if sample is None else sample,
        key=None if key is None else _keyed(key),
        resume=resume,
        repair=repair,
        read_units=read_units,
    )
    with aside():
        loaded = resolved(configs.load(config, target=target))
    if repair and isinstance(loaded.engine, Lambda):
        raise ConfigError(NO_REPAIR)
    stop = Stop()
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        with _report(as_json) as report:
            environment = Environment(stop, lambda _: None, hook_limit=HookLimit(loaded.hook_timeout))
            tally = verified(loaded, request, report, environment)
    finally:
        signal.signal(signal.SIGTERM, before)
    code = _exit_code(tally, request)
    _summarize(tally, request, code, as_json=as_json, stopped=stop.is_set())
    ctx.exit(code if not stop.is_set() else 7)


def _keyed(text: str) -> Callable[[Any], Any]:
    from replicator.errors import ConfigError

    def key(source: Any) -> Any:
        try:
            return source.keys.from_json(text)
        except ValueError as e:
            raise ConfigError(f"--key: {e}") from e

    return key


def _report(as_json: bool) -> JsonReport | Lines:
    if as_json:
        return JsonReport()
    return Lines()


class JsonReport:
    """One line of JSON per result. Waits go to standard error."""

    def __enter__(self) -> JsonReport:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def result(self, result: Result) -> None:
        if result.outcome != "kept":
            put({"result": result.outcome, **_fields(result.finding), "reason": result.reason or None})

    def repair(self, finding: Finding, reason: str) -> None:
        put({"result": "not repaired" if reason else "repaired", **_fields(finding), "reason": reason or None})

    def waiting(self, reason: str | None) -> None:
        pass

    def progress(self, progress: Progress) -> None:
        pass


class Lines:
    """Text, and on a terminal a progress bar below it."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._waiting: str | None = None

    def __enter__(self) -> Lines:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%")
            self._bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("starting", total=None)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def result(self, result: Result) -> None:
        if result.outcome == "kept":
            return
        finding = result.finding
        mark = result.outcome if result.outcome != "difference" else finding.kind
        fields = f": {', '.join(finding.fields)}" if finding.fields else ""
        reason = f": {result.reason}" if result.reason else ""
        say(f"{mark:<11} {_name(finding)} in {finding.table}{fields}{reason}")

    def repair(self, finding: Finding, reason: str) -> None:
        mark, because = ("not repaired", f": {reason}") if reason else ("repaired", "")
        say(f"{mark:<11} {_name(finding)} in {finding.table}{because}")

    def waiting(self, reason: str | None) -> None:
        if reason is not None and reason != self._waiting and self._bar is None:
            note(f"waiting for {reason}")
        self._waiting = reason

    def progress(self, progress: Progress) -> None:
        if self._bar is None:
            return
        phase = f"waiting for {self._waiting}" if self._waiting else progress.phase
        counts = (
            f"{progress.items:,} items, {progress.differences:,} differences, {progress.pending:,} to look at again"
        )
        done = None if progress.done is None else progress.done * 100
        self._bar.update(
            self._task,
            description=_safe(f"{phase}: {counts}"),
            total=None if done is None else 100,
            completed=done or 0,
        )


def _safe(text: str) -> str:
    from rich.markup import escape

    from replicator.escape import escaped

    return escape(escaped(text))


def _name(finding: Finding) -> str:
    from replicator.key import key_text

    return key_text(finding.id)


def _fields(finding: Finding) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "table": finding.table,
        "id": list(finding.id),
        "item": list(finding.item) if finding.item else None,
        "fields": list(finding.fields),
        "version": finding.version,
    }


def _summarize(tally: Tally, request: Request, code: int, *, as_json: bool, stopped: bool) -> None:
    from replicator.verification.differences import at_most

    bound = at_most(tally.differences, tally.items) if request.is_sample else None
    if as_json:
        put(
            {
                "result": "stopped" if stopped else _VERDICTS[code],
                "scope": request.scope,
                "items": tally.items,
                "documents": tally.documents,
                "differences": tally.differences,
                "missing": tally.missing,
                "extra": tally.extra,
                "different": tally.different,
                "repaired": tally.repaired,
                "parked": tally.parked,
                "unconfirmed": tally.unconfirmed,
                "kept": tally.kept,
                "at_most": bound,
                "confidence": None if bound is None else 0.95,
            }
        )
        return
    kinds = f" ({tally.missing:,} missing, {tally.extra:,} extra, {tally.different:,} different)"
    say(
        f"{tally.items:,} items and {tally.documents:,} documents compared: {tally.differences:,} differences"
        f"{kinds if tally.differences else ''}"
    )
    if bound is not None:
        say(f"{tally.differences:,} of {tally.items:,} sampled items differ: at most {bound:.3%} with 95 % confidence")
    if request.repair:
        say(f"{tally.repaired:,} repaired")
    if tally.parked:
        say(f"{tally.parked:,} items parked; see why with: replicator parked list CONFIG")
    if tally.unconfirmed:
        say(f"{tally.unconfirmed:,} unconfirmed: possibly changes not applied yet; verify again while a run is up")
    if tally.kept:
        say(f"{tally.kept:,} documents of expired items kept (ttl_deletes: ignore)")
    say("stopped before the end" if stopped else _sentence(code, request, tally))


def _exit_code(tally: Tally, request: Request) -> int:
    """A sample without an item says nothing."""
    return 7 if tally.exit_code == 0 and request.is_sample and not tally.items else tally.exit_code


def _sentence(code: int, request: Request, tally: Tally) -> str:
    if code == 7 and request.is_sample and not tally.items:
        return "the sample has no item: verify a larger one"
    if code == 0 and (request.is_sample or request.key is not None):
        return "what was compared is equal; it is not the whole table"
    return _SENTENCES[code]


_VERDICTS = {0: "equal", 6: "not equal", 7: "unconfirmed"}
_SENTENCES = {
    0: "the copy equals the source",
    6: "the copy does not equal the source",
    7: "whether the copy equals the source is not confirmed",
}
