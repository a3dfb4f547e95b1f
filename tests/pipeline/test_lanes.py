"""Each shard that may be read has a lane for itself, but for its ancestors."""

from __future__ import annotations

from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from replicator.pipeline.lanes import assigned
from replicator.pipeline.lineage import ancestors
from replicator.state import ShardState


def shard(parent: str | None, slot: str = "", *, ended: bool = False) -> ShardState:
    return ShardState(parent, None, whole=True, since=0.0, slot=slot, ended=ended)


def test_a_second_child_has_a_lane_of_its_own_in_whatever_order_shards_are_stored() -> None:
    known = {"A": shard("P", "lambda-0"), "P": shard(None, "lambda-0"), "B": shard("P")}
    for order in permutations(known):
        given_now = assigned({id: known[id] for id in order})
        assert {id: state.slot for id, state in given_now.items()} == {"B": "lambda-1"}


def test_a_child_has_the_lane_of_its_ancestors_though_none_of_them_has_ended() -> None:
    known = {"P": shard("G", "lambda-0"), "G": shard(None, "lambda-0"), "C": shard("P")}
    for order in permutations(known):
        assert assigned({id: known[id] for id in order})["C"].slot == "lambda-0"


@given(st.lists(st.tuples(st.integers(-1, 5), st.booleans()), min_size=1, max_size=8), st.randoms())
def test_no_two_shards_that_may_be_read_at_the_same_time_have_one_lane(
    made: list[tuple[int, bool]], chance: object
) -> None:
    """Shards appear one by one, in the order of their ids or another, and end at some time."""
    shards: dict[str, ShardState] = {}
    for n, (parent, ends) in enumerate(made):
        name = f"s{parent}" if 0 <= parent < n else None
        shards[f"s{n}"] = shard(name)
        ids = list(shards)
        chance.shuffle(ids)  # type: ignore[attr-defined]
        shards = {id: shards[id] for id in ids}
        shards |= assigned(shards)
        parents = {id: state.parent for id, state in shards.items()}
        unended = [id for id, state in shards.items() if not state.ended]
        for one in unended:
            for other in unended:
                related = one in ancestors([other], parents) or other in ancestors([one], parents)
                assert one == other or related or shards[one].slot != shards[other].slot
        if ends and name is not None:
            shards[name] = shard(shards[name].parent, shards[name].slot, ended=True)
