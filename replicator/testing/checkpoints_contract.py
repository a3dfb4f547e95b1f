"""The contract of checkpoint stores as tests: subclass ``CheckpointsContract`` in a test module of your store.

    class TestOurs(CheckpointsContract):
        @pytest.fixture
        def store(self): ...  # a function from a pipeline's name to its Checkpoints, all in one empty store

A store that the workers of one run may share (``Slotted``) keeps ``SlottedContract`` as well.

By default a later run takes over and the earlier one is fenced. If your store refuses a later run instead, like a file
locked by one process, set ``takes_over = False``.
"""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest

from replicator.checkpoints.contract import Checkpoints, Slotted
from replicator.errors import Fenced
from replicator.state import (
    FENCES,
    FORGOTTEN,
    Counts,
    DamagedCheckpoint,
    Entry,
    Owner,
    Parked,
    PipelineState,
    Save,
    encode,
)
from replicator.testing.memory import MemoryCheckpoints, MemoryDatabase

Place = tuple[str, str]
Build = Callable[..., Checkpoints]


def owner(run: str = "run") -> Owner:
    return Owner(run, "far-away", 4711, 1_700_000_000.0)


def parked(key: str, reason: str = "because", image: str = '{"a":{"S":"\\u0000 \\\\ \u00e9"}}') -> str:
    return encode(Parked((key,), 5, reason, 0.0, new=image, traceback="line 1\nline 2"))


def entries(checkpoints: Checkpoints) -> dict[Place, tuple[int, str]]:
    return {(e.kind, e.id): (e.revision, e.text) for e in checkpoints.read().entries if e.kind != "owner"}


def counts(checkpoints: Checkpoints) -> Mapping[str, Counts]:
    return {source: found for source, found in checkpoints.read().counts.items() if found != Counts()}


class _Fixtures:
    takes_over: ClassVar[bool] = True
    steps: ClassVar[int] = 60  # in a random history

    @pytest.fixture
    def build(self, store: Build) -> Iterator[Build]:
        """Creates stores in one place, as several processes would; all are closed at the end."""
        made: list[Any] = []

        def another(pipeline: str = "contract") -> Checkpoints:
            made.append(store(pipeline))
            return made[-1]  # type: ignore[no-any-return]

        yield another
        for one in made:
            _close(one)

    @pytest.fixture
    def claimed(self, build: Build) -> Checkpoints:
        one = build()
        one.claim(owner())
        return one


def _close(checkpoints: Any) -> None:
    if hasattr(checkpoints, "close"):
        checkpoints.close()
        checkpoints.close()


class Ownership(_Fixtures):
    def test_looking_before_the_first_run_finds_nothing(self, build: Build) -> None:
        one = build()
        assert (list(one.read().entries), dict(one.read().counts), list(one.parked())) == ([], {}, [])
        assert one.pipeline() is None

    def test_a_claim_returns_everything(self, build: Build) -> None:
        first = build()
        found = first.claim(Owner("run", "host", 7, 1.5))
        assert [(e.kind, e.id, e.text) for e in found.entries] == [("owner", "", encode(Owner("run", "host", 7, 1.5)))]
        first.save([Save("shard", "a", 0, '"1"')], {"shard:a": Counts(read=2, applied=2)})
        _close(first)
        again = build().claim(owner("later"))
        assert again.revision == found.revision + 1
        assert {(e.kind, e.id, e.revision) for e in again.entries} == {("owner", "", 2), ("shard", "a", 1)}
        assert again.counts == {"shard:a": Counts(read=2, applied=2)}

    def test_a_later_run_takes_over_or_is_told_who_has_it(self, build: Build, claimed: Checkpoints) -> None:
        later = build()
        if not self.takes_over:
            with pytest.raises(Fenced, match="process 4711 on far-away, since 2023-11-14 22:13:20 UTC"):
                later.claim(owner("later"))
            claimed.save([Save("shard", "a", 0, '"1"')])
            return
        later.claim(owner("later"))
        for saves in ([Save("shard", "a", 0, '"1"')], [Save("pulse", "", None, '"1"')], []):
            with pytest.raises(Fenced):
                claimed.save(saves)
        later.save([])
        assert entries(later) == {}

    def test_asking_whether_it_still_owns_changes_nothing(self, claimed: Checkpoints) -> None:
        claimed.save([Save("shard", "a", 0, '"1"')])
        claimed.save([])
        assert entries(claimed) == {("shard", "a"): (1, '"1"')}

    def test_a_claim_may_be_repeated_after_a_lost_response(self, build: Build) -> None:
        one = build()
        one.claim(owner())
        one.claim(owner())
        one.save([Save("shard", "a", 0, '"1"')])
        assert entries(one) == {("shard", "a"): (1, '"1"')}

    def test_pipelines_in_one_place_do_not_meet(self, build: Build, claimed: Checkpoints) -> None:
        other = build("contract2")
        other.claim(owner("other"))
        other.save([Save("shard", "a", 0, '"2"')], {"x": Counts(read=1)})
        claimed.save([Save("shard", "a", 0, '"1"')])
        assert (entries(claimed), counts(claimed)) == ({("shard", "a"): (1, '"1"')}, {})
        assert entries(other) == {("shard", "a"): (1, '"2"')}


class Saving(_Fixtures):
    def test_saves_compare_and_set(self, claimed: Checkpoints) -> None:
        gone = Save("shard", "gone", None, None)
        claimed.save([Save("shard", "a", 0, '"1"'), Save("shard", "b", None, '"1"'), gone])
        claimed.save([Save("shard", "a", 1, '"2"'), Save("shard", "b", None, '"2"')])
        assert entries(claimed) == {("shard", "a"): (2, '"2"'), ("shard", "b"): (2, '"2"')}
        claimed.save([Save("shard", "a", 2, None), Save("gap", "a", 0, "{}")])
        assert entries(claimed) == {("shard", "b"): (2, '"2"'), ("gap", "a"): (1, "{}")}

    @pytest.mark.parametrize(
        "wrong",
        [
            Save("shard", "a", 0, '"9"'),
            Save("shard", "a", 1, '"9"'),
            Save("shard", "a", 3, '"9"'),
            Save("shard", "a", 1, None),
            Save("shard", "absent", 1, '"9"'),
        ],
    )
    def test_one_wrong_revision_rejects_the_whole_save(self, claimed: Checkpoints, wrong: Save) -> None:
        claimed.save([Save("shard", "a", 0, '"1"')])
        claimed.save([Save("shard", "a", 1, '"2"')])
        with pytest.raises(Fenced):
            claimed.save([Save("shard", "new", 0, '"1"'), wrong], {"x": Counts(read=1)})
        assert (entries(claimed), counts(claimed)) == ({("shard", "a"): (2, '"2"')}, {})

    def test_what_was_saved_is_there_for_others_at_once(self, build: Build, claimed: Checkpoints) -> None:
        command = build()
        assert entries(command) == {}
        claimed.save([Save("shard", "a", 0, '"1"')], {"x": Counts(read=1, filtered=1)})
        assert (entries(command), counts(command)) == ({("shard", "a"): (1, '"1"')}, {"x": Counts(read=1, filtered=1)})

    def test_counts_add_up_by_source(self, claimed: Checkpoints) -> None:
        claimed.save([], {"shard:1": Counts(9, 1, 2, 3, 3), "segment:0": Counts(read=1, superseded=1)})
        claimed.save([Save("pulse", "", None, "{}")], {"shard:1": Counts(parked=-1, applied=1)})
        assert counts(claimed) == {"shard:1": Counts(9, 2, 2, 3, 2), "segment:0": Counts(read=1, superseded=1)}

    def test_the_counts_of_a_forgotten_shard_go_with_it_and_the_sums_stay(
        self, build: Build, claimed: Checkpoints
    ) -> None:
        there = {name: Counts(read=n + 3, applied=n, parked=3) for n, name in enumerate("abcd")}
        claimed.save([Save("shard", name, 0, "1") for name in there], {f"shard:{n}": c for n, c in there.items()})
        gone = [Save("shard", "a", 1, None), Save("shard", "b", 1, None), Save("shard", "none", None, None)]
        for _ in range(2):  # the second time as if the response had been lost
            claimed.save([*gone, Save("shard", "c", 1, "2")], {"shard:c": Counts(read=1, superseded=1)})
        kept = {"shard:c": there["c"] + Counts(read=1, superseded=1), "shard:d": there["d"]}
        assert claimed.read().counts == {FORGOTTEN: there["a"] + there["b"], **kept}
        claimed.save([Save("shard", "d", 1, None)], {"shard:d": Counts(read=1, filtered=1)})
        del kept["shard:d"]
        folded = there["a"] + there["b"] + there["d"] + Counts(read=1, filtered=1)
        assert claimed.read().counts == {FORGOTTEN: folded, **kept}

        command = build()  # a parked change of a shard that is forgotten by now
        command.save([Save("gap", "x", 0, "{}")], {f"shard:{n}": Counts(parked=-1, filtered=1) for n in "abc"})
        late = Counts(parked=-2, filtered=2)
        kept["shard:c"] += Counts(parked=-1, filtered=1)
        assert claimed.read().counts == {FORGOTTEN: folded + late, **kept}

    def test_a_save_whose_response_was_lost_is_applied_once(self, claimed: Checkpoints) -> None:
        claimed.save([Save("shard", "a", 0, '"1"'), Save("shard", "gone", 0, '"1"')])
        again = [
            Save("shard", "a", 1, '"2"'),
            Save("shard", "gone", 1, None),
            Save("shard", "new", 0, '"1"'),
            Save("shard", "never", 0, None),
            Save("pulse", "", None, '"1"'),
        ]
        for _ in range(3):
            claimed.save(again, {"x": Counts(read=5, superseded=5)})
        assert counts(claimed) == {"x": Counts(read=5, superseded=5)}
        found = entries(claimed)
        assert found.pop(("pulse", ""))[1] == '"1"'
        assert found == {("shard", "a"): (2, '"2"'), ("shard", "new"): (1, '"1"')}

    def test_part_of_a_save_that_is_stored_is_no_proof_of_the_whole(self, claimed: Checkpoints) -> None:
        claimed.save([Save("shard", "a", 0, '"1"')])
        with pytest.raises(Fenced):
            claimed.save([Save("shard", "a", 0, '"1"'), Save("shard", "b", 0, '"1"')], {"x": Counts(read=1)})
        assert (entries(claimed), counts(claimed)) == ({("shard", "a"): (1, '"1"')}, {})

    def test_hundreds_of_entries_change_together_or_not_at_all(self, claimed: Checkpoints) -> None:
        many = [Save("shard", f"shardId-{n:04}", 0, f'"{n}"') for n in range(777)]
        claimed.save([Save("segment", "0", 0, '"0"')])
        with pytest.raises(Fenced):
            claimed.save([*many, Save("segment", "0", 2, '"1"')], {"x": Counts(read=1)})
        assert (len(entries(claimed)), counts(claimed)) == (1, {})
        for _ in range(2):  # the second time as if the response had been lost
            claimed.save([*many, Save("segment", "0", 1, '"1"')], {"x": Counts(read=1)})
        assert (len(entries(claimed)), counts(claimed)) == (778, {"x": Counts(read=1)})
        claimed.save([Save("shard", s.id, 1, None) for s in many])
        assert set(entries(claimed)) == {("segment", "0")}

    def test_counts_of_hundreds_of_sources_add_up(self, claimed: Checkpoints) -> None:
        more = {f"shard:{n}": Counts(read=n, applied=n) for n in range(1, 300)}
        claimed.save([Save("pulse", "", None, "{}")], more)
        claimed.save([Save("pulse", "", None, "{}")], more)
        assert counts(claimed) == {source: found + found for source, found in more.items()}

    @pytest.mark.parametrize("seed", range(5))
    def test_any_history_ends_as_it_would_in_memory(self, build: Build, claimed: Checkpoints, seed: int) -> None:
        chance = random.Random(seed)
        model = MemoryCheckpoints(MemoryDatabase())
        model.claim(owner())
        for _ in range(self.steps):
            saves = _saves(chance, entries(model))
            more = {f"shard:{chance.choice('abc')}": Counts(*(chance.randrange(9) for _ in range(5)))}
            assert _refused(claimed, saves, more) == _refused(model, saves, more)
        assert (entries(claimed), counts(claimed)) == (entries(model), counts(model))
        assert entries(build()) == entries(model)


def _saves(chance: random.Random, there: Mapping[Place, tuple[int, str]]) -> list[Save]:
    """Mostly right ones, of entries that are there and that are not."""
    ids = chance.sample("abcdefgh", chance.randrange(1, 6))
    found = []
    for id in ids:
        revision = there.get(("shard", id), (0, ""))[0]
        expected = chance.choices([revision, None, revision + 1, max(0, revision - 1)], [20, 4, 1, 1])[0]
        text = None if expected != 0 and chance.random() < 0.2 else f'"{chance.random()}"'
        found.append(Save("shard", id, expected, text))
    return found


def _refused(checkpoints: Checkpoints, saves: list[Save], more: Mapping[str, Counts]) -> bool:
    try:
        checkpoints.save(saves, more)
    except Fenced:
        return True
    return False


class Commands(_Fixtures):
    def test_a_command_is_not_fenced_but_compares(self, build: Build, claimed: Checkpoints) -> None:
        command = build()
        claimed.save([Save("parked", "k", None, parked("k"))])
        claimed.save([Save("parked", "k", None, parked("k", "again"))])
        with pytest.raises(Fenced):
            command.save([Save("parked", "k", 1, None)], {"x": Counts(parked=-1, filtered=1)})
        command.save([Save("parked", "k", 2, None)], {"x": Counts(parked=-1, filtered=1)})
        claimed.save([Save("shard", "a", 0, '"1"')])
        with pytest.raises(Fenced):
            command.save([Save("parked", "k", 2, None)])
        assert entries(claimed) == {("shard", "a"): (1, '"1"')}
        assert counts(claimed) == {"x": Counts(parked=-1, filtered=1)}

    def test_of_several_that_race_one_wins(self, build: Build, claimed: Checkpoints) -> None:
        claimed.save([Save("parked", f"{n}", None, parked("k")) for n in range(10)])
        commands = [build() for _ in range(4)]

        def won(command: Checkpoints) -> list[bool]:
            return [not _refused(command, [Save("parked", f"{n}", 1, None)], {}) for n in range(10)]

        with ThreadPoolExecutor(4) as threads:
            results = list(threads.map(won, commands))
        assert [sum(each) for each in zip(*results, strict=True)] == [1] * 10
        assert entries(claimed) == {}


class Texts(_Fixtures):
    def test_the_pipelines_own_entry_is_read_by_itself(self, build: Build, claimed: Checkpoints) -> None:
        command, another = build(), build("another")
        assert claimed.pipeline() is None
        for epoch in (1024, 1025):
            state = PipelineState(epoch, "stream", "table", "id", "following", hook="\u00e9")
            claimed.save([Save("pipeline", "", epoch - 1024, encode(state)), Save("pulse", "", None, "{}")])
            assert (command.pipeline(), claimed.pipeline(), another.pipeline()) == (state, state, None)

    def test_a_requested_resync_is_read_by_itself_and_changed_by_compare_and_set(
        self, build: Build, claimed: Checkpoints
    ) -> None:
        command, another = build(), build("another")
        assert claimed.request() is None
        for revision, text in enumerate(("1", "2"), 1):
            command.save([Save("request", "", revision - 1, text)])
            expected = Entry("request", "", revision, text)
            assert (claimed.request(), command.request(), another.request()) == (expected, expected, None)
        with pytest.raises(Fenced):
            claimed.save([Save("request", "", 1, None)])
        claimed.save([Save("request", "", 2, None)])
        assert (claimed.request(), command.request()) == (None, None)

    def test_parked_changes_are_listed_without_their_images(self, claimed: Checkpoints) -> None:
        names = ['["b"]', '["a"]', '["a"]@7', "%", "_", "\\", "\u00e9\U0001f600", "sha256:00"]
        claimed.save([Save("parked", id, None, parked(id)) for id in names])
        assert {e.text for e in claimed.read().entries if e.kind == "parked"} == {""}
        assert [id for id, _ in claimed.parked()] == sorted(names)
        for prefix in ('["a"]', "%", "_", "\\", "\u00e9", "nothing"):
            assert [id for id, _ in claimed.parked(prefix)] == sorted(n for n in names if n.startswith(prefix))
        ((_, found),) = claimed.parked("%")
        assert encode(found) == parked("%")

    @pytest.mark.parametrize("id", ["", " ", "a b", "'\"", "a#b@c/d", "\u6f22\U0001f600", "x" * 530])
    def test_any_id_is_accepted(self, claimed: Checkpoints, id: str) -> None:
        claimed.save([Save("shard", id, 0, '"1"'), Save("gap", id, 0, '"2"')])
        claimed.save([Save("shard", id, 1, '"3"')])
        assert entries(claimed) == {("shard", id): (2, '"3"'), ("gap", id): (1, '"2"')}

    def test_the_largest_parked_changes_fit_and_several_of_them(self, claimed: Checkpoints) -> None:
        image = '{"a":{"S":"' + "\\u0001" * 800_000 + '"}}'  # both images of 400 KB, six letters for a byte
        saves = [Save("parked", f"{n}", None, parked(f"{n}", image=image)) for n in range(3)]
        claimed.save([*saves, Save("shard", "a", 0, '"1"')])
        for id, found in claimed.parked():
            assert encode(found) == parked(id, image=image)
        assert len(list(claimed.parked())) == 3
        claimed.save([Save("parked", "1", 1, parked("1")), Save("parked", "0", None, None)])
        assert [(id, len(p.new or "") < 100) for id, p in claimed.parked()] == [("1", True), ("2", False)]

    def test_a_damaged_entry_is_named_and_left_unchanged(self, claimed: Checkpoints) -> None:
        claimed.save([Save("parked", "k", None, '{"key": 5}')])
        with pytest.raises(DamagedCheckpoint, match="parked 'k'"):
            list(claimed.parked())
        assert ("parked", "k") in entries(claimed)

    def test_parked_changes_come_a_few_at_a_time_however_many_there_are(self, claimed: Checkpoints) -> None:
        image = '{"a":{"S":"' + "x" * 200_000 + '"}}'
        for first in range(0, 60, 10):
            claimed.save([Save("parked", f"{n:02}", None, parked("k", image=image)) for n in range(first, first + 10)])
        tracemalloc.start()
        try:
            count = sum(found.new == image for _, found in claimed.parked())
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert count == 60
        assert peak < 30 * len(image)

    def test_entries_may_change_while_parked_changes_are_read(self, build: Build, claimed: Checkpoints) -> None:
        claimed.save([Save("parked", f"{n:02}", None, parked("k")) for n in range(40)])
        command, seen = build(), list[str]()
        for id, found in command.parked():
            if id == "00":
                claimed.save([Save("parked", "38", 1, None), Save("parked", "39", 1, parked("k", "again"))])
            assert found.reason == "because" or id == "39"
            if id not in ("38", "39"):
                command.save([Save("parked", id, 1, None)])
            seen.append(id)
        assert [id for id in seen if id != "38"] == [f"{n:02}" for n in range(40) if n != 38]
        assert entries(claimed) == {("parked", "39"): (2, "")}

    @pytest.mark.parametrize("count", [1, 30])
    def test_some_parked_changes_are_read_by_their_ids(self, claimed: Checkpoints, count: int) -> None:
        """Few and many: a store may read the one one by one, and the other with all the rest."""
        claimed.save([Save("parked", f"{n:02}", None, parked(f"{n:02}")) for n in range(40)])
        ids = {f"{n:02}" for n in range(3, 3 + count)}
        assert [(id, found.key) for id, found in claimed.parked(ids={*ids, "0"})] == [(id, (id,)) for id in sorted(ids)]
        assert list(claimed.parked("1", ids={"04"})) == []
        assert list(claimed.parked(ids=())) == []


class SlottedContract(_Fixtures):
    """Workers of one run, each with a slot."""

    def worker(self, build: Build, slot: str, run: int = 1) -> Slotted:
        one = build()
        assert isinstance(one, Slotted)
        one.claim_slot(owner(f"worker of {slot}"), slot, run)
        return one

    def test_a_workers_claim_returns_everything(self, build: Build, claimed: Checkpoints) -> None:
        claimed.save(
            [Save("shard", "a", 0, '"1"'), Save("slot", "0", 0, '"1"')], {"shard:a": Counts(read=2, applied=2)}
        )
        self.worker(build, "0")
        one, again = build(), Owner("w", "host", 7, 1.5)
        assert isinstance(one, Slotted)
        found = one.claim_slot(again, "0", 1)
        assert found.revision == 2
        assert {(e.kind, e.id, e.revision) for e in found.entries} == {
            ("owner", "", 1),
            ("owner", "0", 2),
            ("shard", "a", 1),
            ("slot", "0", 1),
        }
        assert [e.text for e in found.entries if (e.kind, e.id) == ("owner", "0")] == [encode(again)]
        assert found.counts == {"shard:a": Counts(read=2, applied=2)}
        assert claimed.read().revision == 1, "of the run"

    def test_workers_of_several_slots_save_beside_one_another(self, build: Build, claimed: Checkpoints) -> None:
        workers = {slot: self.worker(build, slot) for slot in ("0", "1", "coordinator")}
        for revision in range(3):
            for slot, worker in workers.items():
                saves = [Save("slot", slot, revision, f'"{revision}"'), Save("pulse", slot, None, "{}")]
                worker.save(saves, {f"segment:{slot}": Counts(read=1, applied=1)})
                worker.save([])
        claimed.save([])
        assert {place: text for place, (_, text) in entries(claimed).items() if place[0] == "slot"} == {
            ("slot", slot): '"2"' for slot in workers
        }
        assert counts(claimed) == {f"segment:{slot}": Counts(read=3, applied=3) for slot in workers}

    def test_a_later_worker_of_a_slot_fences_the_earlier_one_and_no_other(
        self, build: Build, claimed: Checkpoints
    ) -> None:
        early, other = self.worker(build, "0"), self.worker(build, "1")
        late = self.worker(build, "0")
        for saves in ([Save("slot", "0", 0, '"1"')], [Save("pulse", "0", None, '"1"')], []):
            with pytest.raises(Fenced, match="owns"):
                early.save(saves, {"segment:0": Counts(read=1)} if saves else {})
        late.save([Save("slot", "0", 0, '"1"')])
        other.save([Save("slot", "1", 0, '"1"')])
        claimed.save([])
        assert set(entries(claimed)) == {("slot", "0"), ("slot", "1")}
        assert counts(claimed) == {}

    def test_a_save_takes_a_slot_away_together_with_what_else_it_changes(
        self, build: Build, claimed: Checkpoints
    ) -> None:
        """As a coordinator moves a stage: no batch of an earlier one can be stored from then on."""
        workers, coordinator = [self.worker(build, slot) for slot in "01"], self.worker(build, "coordinator")
        taken = [Save("owner", slot, None, encode(owner("coordinator"))) for slot in "01"]
        coordinator.save([*taken, Save("pipeline", "", 0, '"sweeping"')])
        for slot, worker in enumerate(workers):
            with pytest.raises(Fenced):
                worker.save([Save("slot", f"{slot}", 0, '"1"')])
        again = self.worker(build, "0")
        again.save([Save("slot", "0", 0, '"2"')])
        assert entries(claimed) == {("pipeline", ""): (1, '"sweeping"'), ("slot", "0"): (1, '"2"')}

    def test_of_two_coordinators_the_later_one_goes_on(self, build: Build, claimed: Checkpoints) -> None:
        first, worker = self.worker(build, "coordinator"), self.worker(build, "0")
        second = self.worker(build, "coordinator")
        with pytest.raises(Fenced):
            first.save([Save("owner", "0", None, encode(owner())), Save("pipeline", "", 0, "1")])
        worker.save([Save("slot", "0", 0, '"1"')])
        second.save([Save("pipeline", "", 0, "2")])
        assert entries(claimed) == {("pipeline", ""): (1, "2"), ("slot", "0"): (1, '"1"')}

    def test_a_later_run_fences_the_workers_of_the_earlier_one(self, build: Build, claimed: Checkpoints) -> None:
        """Whatever engine it has: one process, or workers of its own."""
        worker = self.worker(build, "0")
        worker.save([Save("slot", "0", 0, '"1"')])
        if not self.takes_over:
            _close(claimed)
        later = build()
        assert later.claim(owner("later")).revision == 2
        for saves in ([Save("slot", "0", 1, '"9"')], []):
            with pytest.raises(Fenced):
                worker.save(saves)
        with pytest.raises(Fenced):
            self.worker(build, "0", run=1)
        later.save([Save("slot", "0", 1, '"2"')])
        with pytest.raises(Fenced):
            self.worker(build, "0", run=3)
        self.worker(build, "0", run=2).save([Save("slot", "0", 2, '"3"')])
        assert entries(later) == {("slot", "0"): (3, '"3"')}

    def test_a_workers_save_whose_response_was_lost_is_applied_once(self, build: Build, claimed: Checkpoints) -> None:
        worker, other = self.worker(build, "0"), self.worker(build, "1")
        worker.save([Save("slot", "0", 0, '"1"')])
        for revision in range(3):
            worker.save([Save("slot", "0", 1, '"2"'), Save("shard", "a", 0, "1")], {"shard:a": Counts(read=5)})
            other.save([Save("slot", "1", revision, f'"{revision}"')])
        assert entries(claimed)["slot", "0"] == (2, '"2"')
        assert counts(claimed) == {"shard:a": Counts(read=5)}

    def test_workers_that_save_at_the_same_time_lose_nothing(self, build: Build, claimed: Checkpoints) -> None:
        workers = {slot: self.worker(build, slot) for slot in "0123"}

        def work(slot: str) -> None:
            for revision in range(5):
                shared = {"segment:0": Counts(read=1, filtered=1)}
                workers[slot].save([Save("slot", slot, revision, f'"{revision}"')], shared)

        with ThreadPoolExecutor(len(workers)) as threads:
            for done in [threads.submit(work, slot) for slot in workers]:
                done.result()
        assert entries(claimed) == {("slot", slot): (5, '"4"') for slot in workers}
        assert counts(claimed) == {"segment:0": Counts(read=20, filtered=20)}

    @pytest.mark.parametrize("kind", FENCES)
    def test_no_save_removes_what_fences(self, kind: str) -> None:
        with pytest.raises(AssertionError, match="never removed"):
            Save(kind, "0", 1, None)


class CheckpointsContract(Ownership, Saving, Commands, Texts):
    """The whole contract of ``replicator.checkpoints.contract.Checkpoints``."""
