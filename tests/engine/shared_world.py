"""Several readers of one stream that share its pages, in a world where requests take time and readers come and go."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from replicator.aws.client import Call
from replicator.aws.errors import AwsError
from replicator.change import Page
from replicator.engine.shared_calls import SharedCalls
from replicator.key import KeyAttribute, KeySchema
from replicator.source.decoding import RecordsDecoder
from replicator.source.shard_reader import read
from replicator.source.sharing import SharedPages
from replicator.source.stream import Stream
from replicator.state import ShardState
from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.reads import position

KEYS = KeySchema((KeyAttribute("id", "S"),))
START = 1_700_000_000.0
TABLE = "orders"


@dataclass
class Slow:
    """``Calls`` whose requests reach the server, and whose responses arrive, when the world lets time pass."""

    world: World
    waiting: deque[tuple[float, object, Call]] = field(default_factory=deque)
    arriving: list[tuple[float, object, Any]] = field(default_factory=list)

    def begin(self, name: object, call: Call) -> None:
        self.waiting.append((self.world.now + self.world.delay(), name, call))

    def next(self, timeout: float) -> tuple[Any, Any] | None:
        due = [found for found in self.arriving if found[0] <= self.world.now]
        if not due:
            return None
        self.arriving.remove(due[0])
        return due[0][1], due[0][2]

    def close(self) -> None:
        self.waiting.clear()
        self.arriving.clear()

    def reach(self) -> None:
        while self.waiting and self.waiting[0][0] <= self.world.now:
            _, name, call = self.waiting.popleft()
            try:
                response: Any = self.world.db.call(call.operation, call.request)
            except Exception as e:
                response = e
            if self.world.chance.random() < self.world.lossy:
                response = AwsError("ReadTimeoutError", "lost", 0)
            self.arriving.append((self.world.now + self.world.delay(), name, response))


class Reader:
    """Reads every shard from its beginning; ``read`` has the sequence numbers that it was given, by shard."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.away_until = 0.0
        self.read: dict[str, list[str]] = {}
        self.ended: set[str] = set()
        self.begin()

    def begin(self) -> None:
        """A new process, with the positions of the last one; some of what it had read may not have been stored."""
        chance, world = self.world.chance, self.world
        self.steps: dict[str, Generator[Call | Page, Any, None]] = {}
        self.due: dict[str, float] = {}
        self.slow = Slow(world)
        self.calls = SharedCalls(self.slow, world.pages, lambda: world.now, lambda: world.now)
        for shard in self.read:
            if chance.random() < 0.3:
                del self.read[shard][int(len(self.read[shard]) * chance.random()) :]
                self.ended.discard(shard)

    def advance(self) -> None:
        world = self.world
        if world.now < self.away_until:
            return
        for shard in [s for s in world.shards if s not in self.steps and s not in self.ended]:
            self.steps[shard] = read(world.stream, shard, self._state(shard))
            self.due[shard] = world.now
        for shard in [s for s, at in self.due.items() if at <= world.now]:
            del self.due[shard]
            self._resume(shard, partial(next, self.steps[shard]))
        while (answered := self.calls.next(0.0)) is not None:
            (shard, steps), response = answered
            if self.steps.get(shard) is steps and steps is not None:
                resume = steps.throw if isinstance(response, Exception) else steps.send
                self._resume(shard, partial(resume, response))

    def _state(self, shard: str) -> ShardState:
        known = self.read.setdefault(shard, [])
        if not known:
            return ShardState(None, None, self.world.whole, START if not self.world.whole else self.world.now)
        return ShardState(None, None, self.world.whole, START, known[0], known[-1], len(known), self.world.now)

    def _resume(self, shard: str, resume: Callable[[], Any]) -> None:
        try:
            value = resume()
        except StopIteration:
            self.ended.add(shard)
            del self.steps[shard]
            return
        if isinstance(value, Call):
            self.calls.begin((shard, self.steps[shard]), value)
            return
        assert isinstance(value, Page)
        if value.through is not None:
            self.world.check_through(shard, self.read[shard], value)
        self.read[shard] += [record.sequence for record in value.records]
        self.world.check(shard, self.read[shard], self)
        self.due[shard] = self.world.now + max(value.rest, 0.01)


class World:
    """One seed's stream and its readers."""

    def __init__(self, seed: int, readers: int = 3) -> None:
        self.chance = chance = random.Random(seed)
        self.now = START
        self.db = DynamoDB(now=lambda: self.now, random=random.Random(f"db {seed}"), shards=chance.choice([1, 2]))
        self.db.create_table(TABLE)
        self.db.page_sizes(records=chance.choice([1, 3, 10]))
        self.pages = SharedPages(kept_bytes=chance.choice([1, 5_000, 50_000, 1 << 20]))
        self.whole = chance.random() < 0.5
        self.slowest = chance.choice([0.0, 0.02, 0.5])
        self.stream = Stream(
            self.db.stream_arn(TABLE), TABLE, KEYS, RecordsDecoder(KEYS), lambda: self.now, random.Random(f"s {seed}")
        )
        self.written = 0
        events = ("away", "restart", "split", "fail", "nap", "refuse")
        self.rates = {what: chance.choice([0.0, 0.01, 0.1]) for what in events}
        self.lossy = chance.choice([0.0, 0.01, 0.1])
        self.readers = [Reader(self) for _ in range(readers)]

    @property
    def shards(self) -> list[str]:
        return [shard.id for shard in self.db.shards(TABLE)]

    def delay(self) -> float:
        return self.slowest * self.chance.random()

    def in_flight(self) -> Counter[str]:
        """How many requests for records the stream has to answer, by shard."""
        sent = [call for reader in self.readers for _, _, call in reader.slow.waiting]
        return Counter(position(call.request["ShardIterator"])[0] for call in sent if call.operation == "GetRecords")

    def sequences(self, shard: str) -> list[str]:
        found = next(s for s in self.db.shards(TABLE) if s.id == shard)
        return [f"{number}" for number in found.sequences]

    def check(self, shard: str, found: list[str], reader: Reader) -> None:
        """What a reader has of a shard is the shard's beginning: nothing missing, nothing twice, in order."""
        numbers = [int(s) for s in found]
        assert numbers == [int(s) for s in self.sequences(shard)][: len(found)], f"shard {shard}: {numbers}"

    def check_through(self, shard: str, before: list[str], page: Page) -> None:
        """Everything that was created before ``through`` was read."""
        found = next(s for s in self.db.shards(TABLE) if s.id == shard)
        unread = found.created[len(before) + len(page.records) :]
        assert page.through is not None
        assert not unread or page.through <= unread[0] + 1, "a record was passed over"  # times are whole seconds

    def happen(self) -> None:
        chance = self.chance
        self.now += chance.random() * 0.2
        if chance.random() < 0.6:
            for _ in range(chance.choice([1, 1, 5])):
                self.written += 1
                self.db.put(TABLE, {"id": f"k{chance.randrange(8)}", "n": self.written})
        for what, rate in self.rates.items():
            if chance.random() < rate:
                getattr(self, f"_{what}")()
        self.advance()

    def advance(self) -> None:
        for reader in self.chance.sample(self.readers, len(self.readers)):
            for each in self.readers:
                each.slow.reach()
            reader.advance()

    def settle(self) -> None:
        """Nothing goes wrong any more: every reader gets everything."""
        self.db.heal()
        self.rates, self.lossy = {}, 0.0
        for reader in self.readers:
            reader.away_until = 0.0
        for _ in range(12_000):
            self.now += 0.05
            self.advance()
            if all(self._has_all(reader) for reader in self.readers):
                return
        raise AssertionError({n: {s: len(r.read.get(s, ())) for s in self.shards} for n, r in enumerate(self.readers)})

    def _has_all(self, reader: Reader) -> bool:
        return all(len(reader.read.get(s, ())) == len(self.sequences(s)) for s in self.shards)

    def _away(self) -> None:
        """A reader's thread does not come back for a while, whatever it has in flight."""
        self.chance.choice(self.readers).away_until = self.now + self.chance.choice([0.5, 5.0, 60.0])

    def _restart(self) -> None:
        reader = self.chance.choice(self.readers)
        if self.chance.random() < 0.5:
            reader.calls.close()
        reader.begin()

    def _split(self) -> None:
        open_shards = self.db.open_shards(TABLE)
        if len(self.shards) < 6:
            self.db.roll(TABLE, self.chance.choice(open_shards))

    def _fail(self) -> None:
        operation = self.chance.choice(["GetRecords", "GetShardIterator"])
        self.db.fail(operation, self.chance.choice(["InternalServerError", "LimitExceededException"]))

    def _refuse(self) -> None:
        """The stream does not accept iterators that it has just returned."""
        self.db.fail("GetRecords", "ExpiredIteratorException", times=self.chance.choice([1, 1, 5]))

    def _nap(self) -> None:
        """Long enough for iterators to expire."""
        self.now += self.chance.choice([30.0, 1000.0])
