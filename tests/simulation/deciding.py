"""What people do about parked changes, beside a run and between runs, and what makes changes park."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from replicator.batch import Batch, Outcome
from replicator.errors import ConfigError, GapFound, TransientError
from replicator.hooks.hook import DocumentMapping
from replicator.key import KeyAttribute, KeySchema
from replicator.operations import parked
from replicator.operations.scanned import SourceItems
from replicator.source import sample
from replicator.target.contract import Table
from replicator.version import epoch_of
from tests.simulation import hooks, runs, truth
from tests.simulation.identities import slipped
from tests.simulation.plan import Act
from tests.simulation.targets import Killed, Unreliable, UnreliableIndex, UnreliableStore

if TYPE_CHECKING:
    from replicator.checkpoints.contract import Checkpoints
    from tests.simulation.world import Universe

SOURCE_KEYS = KeySchema((KeyAttribute("pk", "S"),))
Decision = Callable[["Universe", parked.ParkedItem, "Command"], str]


class Command:
    """A process of its own, with connections of its own. ``pause``: called before each of its requests."""

    def __init__(self, world: Universe, pause: Callable[[], None]) -> None:
        self.target = world.target(world)
        found = self.target.checkpoints if isinstance(self.target, Unreliable) else UnreliableStore(world)
        self.checkpoints: Checkpoints = found
        self.pause = pause
        for requests, name in ((self.target, "write"), (found, "save")):
            setattr(requests, name, partial(self._paused, getattr(requests, name)))

    def _paused(self, request: Callable[..., object], *given: object) -> object:
        self.pause()
        return request(*given)


def retried(world: Universe, item: parked.ParkedItem, command: Command) -> str:
    return _retried(world, item, DocumentMapping(world.hook(), tuple(world.tables)), command)


def _retried(world: Universe, item: parked.ParkedItem, mapping: DocumentMapping, command: Command) -> str:
    state = parked.pipeline_of(command.checkpoints)
    keys = runs.keys_of(world)
    world.left.pop(item.entry.key, None)  # an order to discard it got no answer, and came to nothing
    command.target.open(tuple(Table(name, keys, dict(options)) for name, options in world.tables.items()), state.epoch)
    source = SourceItems(partial(sample.one, world.source, world.TABLE, SOURCE_KEYS), world.scenario.keeps_expired)
    return parked.retry(item, mapping, command.target, command.checkpoints, world.clock, source)


def retried_in_vain(world: Universe, item: parked.ParkedItem, command: Command) -> str:
    """The requests of a retry get no response, and may be applied late."""
    target = command.target
    if isinstance(target, UnreliableIndex):
        target.write = partial(_unanswered, target)  # type: ignore[method-assign]
    return retried(world, item, command)


def _unanswered(target: UnreliableIndex, batch: Batch) -> Outcome:
    target._float([request for request in target.requests(batch) if not target._reason(request.write)])
    raise TransientError("no answer came")


def dropped(world: Universe, item: parked.ParkedItem, command: Command) -> str:
    given_up = (item.entry.key, epoch_of(item.entry.version), item.entry.new)
    world.dropped.append(given_up)  # also if the answer is lost
    try:
        reason = parked.drop(item, command.checkpoints)
        if reason:
            world.dropped.remove(given_up)
            return reason
    finally:  # also if the answer is lost
        if given_up in world.dropped:
            world.left[item.entry.key] = truth.left(world, item.entry)
    return reason


def decide(world: Universe, act: Act, decision: Decision, pause: Callable[[], None] = lambda: None) -> None:
    """A person's command about one of the parked items, or about all."""
    command = Command(world, pause)
    with suppress(Killed, TransientError, ConfigError, GapFound):  # it dies, gives up, or finds no pipeline or table
        items = list(parked.parked_items(command.checkpoints))
        chosen = items if act.luck[1] < 0.3 else items[act.pick(len(items) or 1) :][:1]
        for item in chosen:
            world.note(decision.__name__, item.item, decision(world, item, command))


def retry(world: Universe, act: Act) -> None:
    decide(world, act, retried)


def retried_with_another_hook(world: Universe, item: parked.ParkedItem, command: Command) -> str:
    """A person retries with a hook that is not the pipeline's, and stays with it only for this."""
    assert world.scenario.hook is not None
    mapping = DocumentMapping(
        hooks.load(world.scenario.hook, world.hook_version + 1, fixed=world.fixed), tuple(world.tables)
    )
    world.retried_with_another_hook.append((item.entry.key, epoch_of(item.entry.version), item.entry.new))
    return _retried(world, item, mapping, command)


def retry_with_another_hook(world: Universe, act: Act) -> None:
    if world.scenario.hook is not None:
        decide(world, act, retried_with_another_hook)


def retry_at_a_start(world: Universe, act: Act) -> None:
    """A command gets between the requests with which the next run begins."""
    decision = (retried, retried_in_vain, dropped)[int(act.luck[1] * 3)]
    world.during_start = partial(decide, world, act, decision)
    world.during_start_after = act.pick(12)
    if act.luck[1] < 0.5:
        raise Killed


def slip_in_a_command(world: Universe, act: Act) -> None:
    """A command other than run gets a config that leads elsewhere."""
    if ("pipeline", "") in world.database.entries and world.depth < 2:
        runs.refused(world, slipped(world, act), "resync" if act.luck[1] < 0.5 else "retry")


def drop(world: Universe, act: Act) -> None:
    decide(world, act, dropped)


def retry_again(world: Universe, act: Act) -> None:
    """A retry gets no answer, and is repeated."""
    decide(world, act, retried_in_vain)
    decide(world, act, retried)


def list_(world: Universe, act: Act) -> None:
    before = dict(world.database.entries)
    for item in parked.parked_items(Command(world, lambda: None).checkpoints):
        assert item.entry.key
    assert world.database.entries == before


def decide_later(world: Universe, act: Act) -> None:
    """A command between runs, or so slow that runs begin and end between its requests."""
    turns = int(act.between(0, 40))

    def pause() -> None:
        if turns and world.random.random() < 0.7:
            runs.go(world, turns)

    decision = retried if act.luck[0] < 0.6 else dropped

    def command() -> None:
        decide(world, act, decision, pause)

    world.later_between_runs(0, command)
    if act.luck[1] < 0.5:
        raise Killed


def hammer(world: Universe, act: Act) -> None:
    """One item changes many times in a row."""
    for _ in range(int(act.between(5, 40))):
        world.write(f"k{act.pick(world.scenario.keys)}", removes=False)


def relent(world: Universe, act: Act) -> None:
    """The constraint that refuses documents is removed."""
    world.lenient = True


def fix_hook(world: Universe, act: Act) -> None:
    """The hook is fixed; a run that goes on has still the old one, the commands have the new."""
    world.fixed = True
    if act.luck[0] < 0.5:
        raise Killed


ACTS: Mapping[str, Callable[[Universe, Act], None]] = {
    "retry": retry,
    "retry again": retry_again,
    "retry with another hook": retry_with_another_hook,
    "retry at a start": retry_at_a_start,
    "slip in a command": slip_in_a_command,
    "give up": drop,
    "list": list_,
    "decide later": decide_later,
    "hammer": hammer,
    "relent": relent,
    "fix hook": fix_hook,
}
