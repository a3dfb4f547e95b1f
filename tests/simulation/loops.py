"""Two tables, each copied to the other by a pipeline of its own, and applications that write to both.

Driver, readers, pipeline, the DynamoDB target and its encoding are the production code; in memory are the tables, their
streams and the checkpoints. One seed decides everything. In each phase an item has one side on which applications write
to it. Before another phase begins, both pipelines have caught up and no request of theirs is in doubt any more, as
``replicator cutover`` requires. Both tables have a time to live: the service removes items past their time in
either one whenever it likes, also those that have been renewed in the other.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Literal, cast

import orjson

from connectors.dynamodb.cleanup import ScanCleanup
from connectors.dynamodb.connection import Account
from connectors.dynamodb.encode import Request
from connectors.dynamodb.epochs import Epochs
from connectors.dynamodb.options import DynamoDBOptions
from connectors.dynamodb.responses import is_stored
from connectors.dynamodb.sender import Sender
from connectors.dynamodb.target import DynamoDB as Target
from connectors.dynamodb.writer import Writer
from replicator.aws.client import Client
from replicator.aws.errors import AwsError
from replicator.config.settings import Backfill, Config, Source
from replicator.config.target import Destination
from replicator.engine import preexisting
from replicator.engine.context import Environment, RunContext
from replicator.engine.local import Driver
from replicator.engine.scheduler import StepResult
from replicator.engine.startup import RESUMING, Allowed, digest
from replicator.errors import GapFound
from replicator.marks import Marks, mark_of
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.source.table import describe_table
from replicator.state import Owner, ResyncRequest, Save, encode
from replicator.target.in_doubt import WINDOW, InDoubtWindow
from replicator.testing.dynamodb import DynamoDB
from replicator.testing.memory import MemoryCheckpoints, MemoryDatabase
from tests.engine.virtual_scheduler import VirtualSteps
from tests.simulation.clock import Clock, VirtualStop
from tests.simulation.runs import limit_turns
from tests.simulation.targets import Killed

TABLE = "orders"
KEYS = 5
PHASES = 3
ACTS = 25  # in a phase
ROUNDS = 12  # within which two pipelines settle
TURNS = 3000  # within which a run that nothing disturbs has caught up
MARKS = Marks("_replicator_version", "_replicator_deleted", "_replicator_mark")
EXPIRY = {"Enabled": True, "AttributeName": "ttl"}
OPTIONS: Mapping[str, Any] = {"region": "us-east-1", "loops": True}

Name = Literal["here", "there"]


class Wire:
    """A client of one side's server."""

    server = "memory"

    def __init__(self, db: DynamoDB) -> None:
        self.db = db

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        return self.db.call(operation, request)


class Requests:
    """In place of ``Sender``: carries requests out at once, but for those that are lost, late, or the end of a run."""

    server = "memory"

    def __init__(self, world: World, db: DynamoDB) -> None:
        self._world, self._db = world, db

    def start(self, requests: Sequence[Request]) -> Future[str]:
        for request in self._world.random.sample(requests, len(requests)):
            self._carry_out(request)
            if request.then is not None and is_stored(request.answer):
                self._carry_out(request.then)
        done: Future[str] = Future()
        done.set_result("")
        return done

    def close(self) -> None: ...

    def _carry_out(self, request: Request) -> None:
        fate = self._world.fate()
        if fate == "killed":
            raise Killed
        if fate == "late":
            self._world.late.append(lambda: self._apply(request))
        answer = self._apply(request) if fate in ("", "unanswered") else b""
        request.answer = answer if fate == "" else AwsError("", "the connection broke", 0)

    def _apply(self, request: Request) -> bytes | AwsError:
        try:
            answer = self._db.call(request.operation, orjson.loads(request.body))
        except AwsError as e:
            return e
        self._world.stored += "_replicator_deleted" not in request.body.decode()
        return answer


class InMemory(Account):
    """The account of one side, without a network."""

    def __init__(self, world: World, db: DynamoDB, options: DynamoDBOptions) -> None:
        super().__init__(options)
        self._world, self._db = world, db

    @property
    def client(self) -> Any:
        return Wire(self._db)

    @property
    def epochs(self) -> Epochs:
        return Epochs(self.client, self._options.epochs_table)

    def writer(self, in_doubt: InDoubtWindow) -> Writer:
        return Writer(cast(Sender, Requests(self._world, self._db)), in_doubt, self._options)

    def close(self) -> None: ...


class Steps(VirtualSteps):
    """The seed picks which due step comes next."""

    def __init__(self, world: World, client: Client) -> None:
        super().__init__(client)
        self._world = world
        self._when: dict[str, float] = {}

    def again(self, name: str, rest: float = 0.0) -> None:
        self._when[name] = self._world.clock.now + rest

    def clear(self) -> None:
        super().clear()
        self._when.clear()

    def get(self, timeout: float) -> StepResult | None:
        clock = self._world.clock
        clock.now += 0.05
        due = [name for name, at in self._when.items() if at <= clock.now]
        if not due:
            clock.now += max(timeout, 0.01)
            return None
        name = self._world.random.choice(due)
        del self._when[name]
        return self._step(name)


class Pipeline:
    """One of the two: from ``source`` to ``target``, with its own checkpoints."""

    def __init__(self, world: World, name: str, source: DynamoDB, target: DynamoDB, **options: Any) -> None:
        self.world, self.name = world, name
        self._source, self._to = source, target
        self._options = DynamoDBOptions(**OPTIONS, **options)
        self._database = MemoryDatabase()
        self._backfill = Backfill(enabled=not self._options.adopt)
        self._runs = 0

    def run(self, turns: int, until: Literal["caught-up"] | None = None) -> None:
        """A run of so many turns at most; it may be killed."""
        self._runs += 1
        with suppress(Killed):
            driver = self._driver()
            limit_turns(driver, turns)
            driver.run(until=until)

    def catch_up(self, allowed: Allowed = RESUMING) -> None:
        """A run that nothing disturbs, until it has caught up."""
        self._runs += 1
        driver = self._driver()
        limit_turns(driver, TURNS)
        try:
            driver.run(until="caught-up", allowed=allowed)
        except Killed as e:
            raise AssertionError(f"{self.name} did not catch up within {TURNS} turns") from e

    def request(self, keys: Sequence[str]) -> None:
        """What ``resync --key`` requests, for the next run."""
        context = self._driver()._context
        checkpoints, hook = context.checkpoints, context.mapping.hook
        view = CheckpointView(checkpoints.read())
        found = preexisting.inspect(view, context.table, context.target, context.tables, hook)
        request = ResyncRequest(self.world.clock(), digest(found), keys=tuple((key,) for key in keys))
        checkpoints.save([Save("request", "", 0, encode(request))])

    def outlive_doubt(self) -> None:
        """A run that goes on until its in-doubt window is over and its tombstones are gone."""
        self._runs += 1
        driver = self._driver()
        in_doubt, clock = driver._in_doubt, self.world.clock
        assert in_doubt is not None

        def passes(left: int) -> None:
            if left % 100 == 50:
                clock.now += WINDOW
            if left < TURNS - 100 and in_doubt.left is None:
                raise Killed

        limit_turns(driver, TURNS, passes)
        with suppress(Killed):
            driver.run(until=None)
        assert in_doubt.left is None, "the in-doubt window does not end"

    def _driver(self) -> Driver:
        world, wire = self.world, Wire(self._source)
        target = self._target()
        table = describe_table(wire, TABLE)
        target.mirror(table, wire)
        destination = Destination("dynamodb", Target, self._options, {TABLE: {}})
        config = Config(self.name, Source(table=TABLE), destination, backfill=self._backfill)
        tables = destination.wanted(table.keys, own_ids=False)
        context = RunContext(config, wire, target, MemoryCheckpoints(self._database), None, table, tables)
        environment = Environment(
            VirtualStop(world.clock),  # type: ignore[arg-type]
            lambda progress: None,
            world.clock,
            world.random,
            lambda client: Steps(world, client),
            world.clock,
        )
        return Driver(context, Owner(f"{self.name} {self._runs}", "here", 1, world.clock()), environment)

    def _target(self) -> Target:
        target, account = Target(self._options, self.name), InMemory(self.world, self._to, self._options)
        target._account = target._tables._account = account
        target._in_doubt = InDoubtWindow(self.world.clock)
        writer = account.writer(target.in_doubt)
        target._opened = writer, ScanCleanup(account.client, writer, self.world.clock)
        return target


class World:
    """One seed's world. ``model``: what applications wrote last, by key: the value and the time of its expiry."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(f"loops {seed}")
        self.clock = Clock()
        self.late: list[Callable[[], object]] = []
        self.stored = 0  # documents that pipelines stored
        self.calm = True
        self.value = 0
        self.model: dict[str, tuple[int, int | None]] = {}
        self.here, self.there = (
            DynamoDB(now=self.clock, random=random.Random(f"{side} {seed}"), shards=self.random.choice([1, 2]))
            for side in ("here", "there")
        )
        self.snapshots: dict[tuple[Name, str], dict[str, Any]] = {}
        for db in (self.here, self.there):
            db.create_table(TABLE, keys={"pk": "S"})
            db.call("UpdateTimeToLive", {"TableName": TABLE, "TimeToLiveSpecification": EXPIRY})
        self.forward = Pipeline(self, "forward", self.here, self.there)
        self.back = Pipeline(self, "back", self.there, self.here, adopt=True)

    def fate(self) -> str:
        """What becomes of a request."""
        if self.calm or self.random.random() < 0.8:
            return ""
        return self.random.choice(["lost", "unanswered", "late", "killed"])

    # Applications

    def act(self, side: Name, key: str) -> None:
        """An application writes to an item, in one of the ways in which they do."""
        db = self.here if side == "here" else self.there
        self.value += 1
        image = self._image(db, key)
        if image is not None:
            self.snapshots[side, key] = image
        self.random.choice([self.put, self.put_back, self.update, self.delete, self.copy])(db, side, key)
        self._remember(db, key)

    def _remember(self, db: DynamoDB, key: str) -> None:
        image = self._image(db, key)
        if image is None or MARKS.deleted in image:
            self.model.pop(key, None)
        else:
            self.model[key] = int(image["v"]["N"]), _expiry(image)

    def put(self, db: DynamoDB, side: Name, key: str) -> None:
        """The whole item, as the application knows it: without a time to live, past it already, or renewed."""
        due = self.random.choice([None, -60, 1_000_000])
        more = {} if due is None else {"ttl": {"N": str(int(self.clock.now) + due)}}
        self._store(db, {"pk": {"S": key}, **more}, key)

    def put_back(self, db: DynamoDB, side: Name, key: str) -> None:
        """The item as it was read, now or long ago, with a new value. An item without marks gets none of old."""
        image, known = self._image(db, key), self.snapshots.get((side, key))
        if image is None or known is None or MARKS.version not in image or MARKS.deleted in image:
            self.put(db, side, key)
        else:
            self._store(db, known, key)

    def update(self, db: DynamoDB, side: Name, key: str) -> None:
        """Only some attributes."""
        request = {
            "TableName": TABLE,
            "Key": {"pk": {"S": key}},
            "UpdateExpression": "SET v = :v",
            "ExpressionAttributeValues": {":v": {"N": str(self.value)}},
        }
        image = self._image(db, key)
        if image is not None and MARKS.deleted in image:  # a tombstone: as if it were absent
            self.put(db, side, key)
        else:
            db.call("UpdateItem", request)

    def delete(self, db: DynamoDB, side: Name, key: str) -> None:
        db.delete(TABLE, {"pk": key})

    def copy(self, db: DynamoDB, side: Name, key: str) -> None:
        """Another item with all its attributes, under this key; not one that was itself a copy of this item."""
        other = self._image(db, f"k{self.random.randrange(KEYS)}")
        if other is None or MARKS.deleted in other or other.get(MARKS.mark) == {"S": mark_of((key,))}:
            self.put(db, side, key)
        else:
            self._store(db, {**other, "pk": {"S": key}}, key)

    def _store(self, db: DynamoDB, item: Mapping[str, Any], key: str) -> None:
        kept = {name: value for name, value in item.items() if name != MARKS.deleted}
        db.call("PutItem", {"TableName": TABLE, "Item": {**kept, "v": {"N": str(self.value)}}})

    def _image(self, db: DynamoDB, key: str) -> dict[str, Any] | None:
        found: dict[str, Any] = orjson.loads(db.call("GetItem", {"TableName": TABLE, "Key": {"pk": {"S": key}}}))
        return found.get("Item")

    # The service

    def expire(self, side: Name, key: str, owner: Name) -> None:
        """Remove an item past its time; not while a request is in doubt, which could store an older state again."""
        db = self.here if side == "here" else self.there
        image = self._image(db, key)
        if image is None or MARKS.deleted in image or not self._is_past(_expiry(image)) or self.late:
            return
        db.expire(TABLE, {"pk": key})
        if side == owner:
            self.model.pop(key, None)

    def _is_past(self, expiry: int | None) -> bool:
        return expiry is not None and expiry <= self.clock.now

    # Phases

    def phase(self, sides: Sequence[Name], pipelines: Sequence[Pipeline]) -> None:
        """Applications write, each item on one side, while runs come and go."""
        keys: dict[str, Name] = {f"k{n}": self.random.choice(sides) for n in range(KEYS)}
        self.calm = False
        for _ in range(ACTS):
            if self.random.random() < 0.6:
                key = self.random.choice(sorted(keys))
                self.act(keys[key], key)
            elif self.random.random() < 0.4:
                key = self.random.choice(sorted(keys))
                self.expire(self.random.choice(["here", "there"]), key, keys[key])
            elif self.random.random() < 0.1:
                self.random.choice([self.here, self.there]).roll_all(TABLE)
            else:
                self.random.choice(pipelines).run(self.random.randrange(5, 60))
            if self.late and self.random.random() < 0.3:
                self.late.pop(self.random.randrange(len(self.late)))()
        self.settle(pipelines)

    def lose_records(self) -> None:
        """The stream forgets what applications wrote here while no run read it; then what the documents say to do.

        The writers there rest, and the opposite pipeline has caught up. A resync lets this side win. Items that only
        applications wrote there, and that are gone here, are removed by their keys.
        """
        for _ in range(ACTS):
            self.act("here", f"k{self.random.randrange(KEYS)}")
        self.here.disable_stream(TABLE)
        self.here.enable_stream(TABLE)
        self.back.catch_up()
        try:
            self.forward.catch_up()
        except GapFound:
            self.forward.catch_up(Allowed(resync=True))
        else:
            raise AssertionError("lost records are not noticed")
        self.settle([self.forward, self.back])
        if gone := sorted(self._seen(self.there).keys() - self._seen(self.here).keys()):
            self.forward.request(gone)
            self.settle([self.forward, self.back])

    def settle(self, pipelines: Sequence[Pipeline]) -> None:
        """Both catch up and end their in-doubt windows; then neither may have anything left to say."""
        self.calm = True
        while self.late:
            self.late.pop()()
        for _ in range(ROUNDS):
            before = self.stored
            for pipeline in pipelines:
                pipeline.catch_up()
            if self.stored == before:
                return
        raise AssertionError(f"the pipelines do not settle: {self.stored - before} writes in the last round")

    def check(self) -> None:
        """Both tables hold what applications wrote last, but for items past their time: each may have those or not."""
        wanted = {key: value for key, (value, expiry) in self.model.items() if not self._is_past(expiry)}
        for name, db in (("here", self.here), ("there", self.there)):
            seen = self._seen(db)
            assert seen == wanted, f"{name}: {seen} instead of {wanted}"

    def _seen(self, db: DynamoDB) -> dict[str, int]:
        """The values of the items that are neither deleted nor past their time, by key."""
        items = orjson.loads(db.call("Scan", {"TableName": TABLE}))["Items"]
        live = [i for i in items if MARKS.deleted not in i and not self._is_past(_expiry(i))]
        return {i["pk"]["S"]: int(i["v"]["N"]) for i in live}


def _expiry(image: Mapping[str, Any]) -> int | None:
    return int(image["ttl"]["N"]) if "ttl" in image else None


def simulate(seed: int) -> World:
    """One seed, to its end. AssertionError if the tables differ, or the pipelines do not settle."""
    world = World(seed)
    world.phase(["here"], [world.forward])
    both = [world.forward, world.back]
    world.settle(both)  # the pipeline back begins before anything is written there
    world.check()
    for n in range(PHASES):
        world.phase(["there"] if n == 0 else ["here", "there"], both)
        world.check()
    if world.random.random() < 0.5:
        world.lose_records()
        world.check()
    for pipeline in both:
        pipeline.outlive_doubt()
    for db in (world.here, world.there):
        assert not any(MARKS.deleted in item for item in db.items(TABLE)), "tombstones remain"
    return world
