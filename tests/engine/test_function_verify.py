"""``verify`` of a copy that a function follows: what differs is confirmed, and what lag explains is not."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest

from replicator.engine.function import IDLE
from replicator.errors import ConfigError
from replicator.items.attributes import image
from replicator.key import Key
from replicator.operations.cutover import Criteria, reasons, standing
from replicator.operations.verify import check_repairs, positions_of
from replicator.pipeline.progress import UNINVOKED
from replicator.verification.differences import NO_RUN, STALLED
from replicator.verification.examiner import Examiner, Floor
from replicator.verification.verifier import Result, Verifier
from replicator.version import FIRST_EPOCH
from tests.engine.cluster import TABLE
from tests.engine.function_stack import Stack

SCHEDULE = 15 * 60.0
LOOK = 5.0  # seconds between two looks of a pass


class Followed(Stack):
    """A copy of twenty items in two shards, and a pass that compares it. ``results``: of the pass."""

    def __init__(self) -> None:
        super().__init__(shards=2)
        for n in range(20):
            self.write(f"k{n}", n)
        self.backfill()
        self.clock.now += IDLE + 1
        self.keep_up()
        context, self.results = self.context(), list[Result]()
        examiner = Examiner(context.mapping, {TABLE: context.tables[0]}, context.target, Floor(0, FIRST_EPOCH + 10))  # type: ignore[arg-type]
        self.verifier = Verifier(examiner, self.read, self.read, self.clock, self.clock)

    def read(self, keys: Collection[Key]) -> Mapping[Key, bytes]:
        return {key: stored for key, stored in self.images.items() if key in keys}

    @property
    def images(self) -> dict[Key, bytes]:
        return {(str(item["pk"]),): image(item) for item in self.source.items(TABLE)}

    def keep_up(self) -> None:
        self.until_over()
        self.container().invoke({})

    def compare(self) -> None:
        self.results += self.verifier.scanned(list(self.images.items()), self.clock(), "segment:0")

    def look_again(self) -> None:
        entries = self.context().checkpoints.read().entries
        self.results += self.verifier.settle(positions_of(entries, FIRST_EPOCH, self.clock()))

    def pass_time(self, seconds: float, *, scheduled: bool = True) -> None:
        for n in range(1, int(seconds / LOOK)):
            self.clock.now += LOOK
            if scheduled and n % (SCHEDULE / LOOK) == 0:
                self.keep_up()
            self.look_again()
            if not self.verifier.pending:
                return


@pytest.mark.parametrize(("missing", "minutes"), [(False, 31), (True, 91)])
def test_a_difference_behind_the_function_is_confirmed_by_its_schedule_alone(missing: bool, minutes: int) -> None:
    stack = Followed()
    rows = stack.database.rows[TABLE]
    if missing:
        del rows["k1",]
    else:
        rows["k1",] = (rows["k1",][0], b'{"pk": "k1", "v": 77}')
    begun = stack.clock()
    stack.compare()
    stack.pass_time(2 * 3600.0)
    (result,) = stack.results
    assert (result.outcome, result.finding.item) == ("difference", ("k1",))
    assert stack.clock() - begun <= minutes * 60


def test_a_change_that_no_invocation_has_stored_yet_is_no_difference() -> None:
    stack = Followed()
    stack.write("k1", 100)
    stack.compare()
    stack.look_again()
    assert stack.verifier.pending == 1
    stack.pass_time(2 * 3600.0)
    assert stack.results == []
    assert stack.stored == stack.wanted


def test_without_a_schedule_a_difference_behind_the_function_is_unconfirmed_in_the_end() -> None:
    stack = Followed()
    rows = stack.database.rows[TABLE]
    rows["k1",] = (rows["k1",][0], b'{"pk": "k1", "v": 77}')
    stack.compare()
    stack.pass_time(10 * STALLED, scheduled=False)
    assert stack.results == []
    stack.pass_time(UNINVOKED, scheduled=False)
    (result,) = stack.results
    assert (result.outcome, result.reason) == ("unconfirmed", NO_RUN)


def test_cutover_names_the_function_if_none_of_its_invocations_came_for_long() -> None:
    stack = Followed()

    def said() -> list[str]:
        at = standing(stack.context().checkpoints.read(), stack.clock())
        return [reason.text for reason in reasons(at, Criteria(stack.clock()))]

    assert not [text for text in said() if "so nothing is copied" in text]
    stack.clock.now += UNINVOKED + 1
    text = next(text for text in said() if "so nothing is copied" in text)
    assert text.startswith("no invocation of the function came in 45 minutes")
    assert text.endswith("see: replicator check CONFIG")


def test_a_repair_of_what_a_function_follows_is_refused_whatever_engine_the_config_has() -> None:
    with pytest.raises(ConfigError, match="--repair is not supported with AWS Lambda"):
        check_repairs(Followed().context().checkpoints.read())
