"""What can be verified without any server: the config, the hook, and tables as the config describes them.

``check`` verifies these with the same functions, and then everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from replicator.aws.prices import PRICES
from replicator.config.engine import Lambda, Ray
from replicator.engine.assembly import KEPT_EXPIRED, check_tables
from replicator.engine.gap_repair import check_supported
from replicator.engine.generations import hook_files
from replicator.engine.worker import check_guarded
from replicator.errors import ConfigError, ReplicatorError
from replicator.hooks import loading
from replicator.hooks.collisions import collision
from replicator.hooks.hook import DocumentMapping, Hook
from replicator.operations.check_lambda import unusable_findings
from replicator.operations.estimate import idle_requests
from replicator.operations.finding import Finding, failed, problem
from replicator.operations.preview import forecast
from replicator.target.contract import OWN_IDS, UNKNOWN_KEYS, Forecasting, with_history

if TYPE_CHECKING:
    from replicator.config.settings import Config

T = TypeVar("T")


def check_offline(config: Config, unset: Sequence[str] = ()) -> list[Finding]:
    """All findings. ``unset``: a sentence for each placeholder of the config that has a stand-in."""
    findings = [Finding("config", "ok", f"{config.path.name} is valid")]
    findings += (Finding("config", "note", f"not checked: {sentence}") for sentence in unset)
    hook = hook_of(config, findings)
    findings += choices(config)
    if isinstance(config.engine, Lambda):
        findings += unusable_findings(config)
    if hook is not None or config.transform is None:
        findings += gathered("target", _tables(config, hook))
    findings += (Finding("offline", "note", f"not checked: {text}") for text in _unchecked(config, hook))
    return findings


def hook_of(config: Config, findings: list[Finding]) -> Hook | None:
    """The hook, if the config names one that can be loaded. Appends what was found out about it."""
    spec = config.transform
    if spec is None:
        return None
    hook = tried(findings, "transform", lambda: loading.load(spec, config.base))
    if hook is not None:
        findings.append(Finding("transform", "ok", f"{spec} is a {_kind(hook)}"))
    if text := collision(hook_files(config)):
        findings.append(problem("transform", text))
    return hook


def _kind(hook: Hook) -> str:
    return "hook with its own document ids" if hook.declared else "hook with one document per item"


def choices(config: Config) -> Iterator[Finding]:
    """Options that reduce what is copied or removed."""
    if config.ttl_deletes == "ignore":
        yield Finding("ttl_deletes", "note", f"expired items stay in the target, until {KEPT_EXPIRED}")
    if (interval := config.source.poll_interval) is not None:
        yield Finding("source.poll_interval", "note", _polling(interval))
    if not config.backfill.enabled:
        yield Finding("source.backfill", "note", "disabled: only changes from now on will be copied")


def _polling(interval: float) -> str:
    """What a poll interval costs: every request is charged, also one that returns nothing."""
    requests = idle_requests(interval)
    usual = idle_requests(None)
    dollars = requests.high * 30 / 1e6 * PRICES.stream_reads
    return (
        f"{interval * 1000:g} ms: {requests.low:,.0f} to {requests.high:,.0f} requests per open shard and day "
        f"(by default up to {usual.high:,.0f}), which costs up to ${dollars:.2f} per shard and month in {PRICES.region}"
    )


def _tables(config: Config, hook: Hook | None) -> Iterator[Finding]:
    """Whether the target's tables are possible, by the rules of its type."""
    own_ids = hook is not None and hook.declared
    check_tables(config, own_ids=own_ids)
    wanted = config.target.wanted(OWN_IDS if own_ids else UNKNOWN_KEYS, own_ids=own_ids)
    target = config.target.build(config.pipeline)  # does not connect
    try:
        forecast(target, wanted)(())
        names = tuple(table.name for table in wanted)
        check_supported(config, DocumentMapping(hook, names, histories=with_history(wanted)), target)
        if isinstance(config.engine, Ray | Lambda):
            check_guarded(target)
    finally:
        target.close()
    if isinstance(target, Forecasting):
        yield Finding("target", "ok", f"{config.target.type}: the options of its tables are valid")
    else:
        yield Finding("target", "note", f"not checked: the tables, which {config.target.type} only compares online")


def _unchecked(config: Config, hook: Hook | None) -> Iterator[str]:
    own_ids = hook is not None and hook.declared
    yield "the source: region, credentials, permissions, the stream" + ("" if own_ids else ", and the table's key")
    yield "the target: address, login, existing tables" + (" (and how the key fits in)" if not own_ids else "")
    if not hasattr(config.target.connector, "checkpoints"):
        yield "the checkpoint store, and so whether a run would resume"
    if isinstance(config.engine, Lambda):
        yield "the function on AWS Lambda, and its event source mapping"
    if hook is not None:
        yield f"what the hook returns: it was loaded, but not called (replicator.testing: hook_test({hook.name}))"


def tried(findings: list[Finding], subject: str, act: Callable[[], T]) -> T | None:
    """The result of ``act``; None and a finding if it raises a ReplicatorError."""
    try:
        return act()
    except ReplicatorError as e:
        findings.append(failed(subject, e))
        return None


def gathered(subject: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """``findings``, plus one for the error that ends them early."""
    try:
        yield from findings
    except ConfigError as e:
        yield from (problem(subject, p) for p in e.problems)
    except ReplicatorError as e:
        yield failed(subject, e)
