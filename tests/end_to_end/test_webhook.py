"""Whole runs into the documented receiver, which is a process of its own, and into one that rejects what it likes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from urllib3 import HTTPConnectionPool

from tests.cli.command_line import World
from tests.connectors.webhook.receiver_kit import SECRET, Receiver, running
from tests.connectors.webhook.scripted import Answer, Request, Scripted, serving, willing
from tests.end_to_end.pipeline import Run


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    with running(tmp_path_factory.mktemp("receiver")) as receiver:
        yield receiver


@pytest.fixture
def receiver(server: Receiver) -> Receiver:
    if server.process is None:  # a test that failed may have left it killed
        server.start()
    server.empty()
    return server


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    with serving() as found:
        yield found


def into(world: World, url: str, secret: str, *options: str) -> World:
    """Let the pipeline copy the table ``orders`` to a receiver."""
    lines = "\n  ".join(["type: webhook", f"url: {url}", f"secret: {secret}", *options])
    world.change(f"type: postgres\n  url: {world.postgres.url}", lines)
    world.db.create_table("orders")
    return world


@pytest.fixture
def notifying(world: World, receiver: Receiver) -> World:
    return into(world, receiver.config["url"], receiver.config["secret"])


def changed(world: World) -> dict[str, Any]:
    """Put and delete some items; what is there then, by id."""
    for n in range(30):
        world.db.put("orders", {"id": f"{n}", "n": n})
    for n in range(0, 30, 3):
        world.db.delete("orders", {"id": f"{n}"})
    return {f"{n}": n for n in range(30) if n % 3}


def copied(receiver: Receiver) -> dict[str, Any]:
    return {id: document["n"] for (id,), document in receiver.documents("orders").items()}


def test_a_receiver_that_goes_and_returns_gets_every_change(
    notifying: World, receiver: Receiver, tmp_path: Path
) -> None:
    world = notifying
    world.db.put("orders", {"id": "0", "n": 0})
    assert world.call("check", world.config)[0] == 0
    with Run(["run", world.config, "--json"], {**world.shell.environ}, tmp_path / "run.log") as run:
        run.eventually(lambda: copied(receiver), "the scan is copied")
        receiver.kill()
        expected = changed(world)
        assert f"127.0.0.1:{receiver.port}" in run.until("waiting")["reason"]
        receiver.start()
        run.eventually(lambda: copied(receiver) == expected, "the copy equals the table")
        assert run.stop().code == 0


def test_a_resync_whose_beginning_the_receiver_rejects_once_waits_and_goes_on(
    world: World, scripted: Scripted, tmp_path: Path
) -> None:
    into(world, scripted.url, "whsec_" + "c2VjcmV0" * 4, "state_requests: false")
    world.db.put("orders", {"id": "0", "n": 0})
    begins: list[Any] = []

    def answer(request: Request) -> Answer:
        if request.message["type"] == "replicator.begin":
            begins.append(request.message["data"]["epoch"])
        return Answer(400) if len(begins) == 2 else willing(request)

    scripted.answer = answer
    with Run(["run", world.config, "--json"], {**world.shell.environ}, tmp_path / "run.log") as run:
        run.eventually(lambda: any("0" in sent.keys for sent in scripted.changes), "the scan is sent")
        run.eventually(lambda: world.call("resync", world.config)[0] == 0, "the resync is requested")
        run.eventually(lambda: len(begins) == 3, "the rejected begin is sent again")
        assert begins[0] < begins[1] == begins[2]
        run.eventually(lambda: [r for r in scripted.requests if r.message["type"] == "replicator.purge"], "swept")
        assert run.stop().code == 0


def test_an_event_that_the_receiver_rejects_is_parked_alone(world: World, scripted: Scripted) -> None:
    world = into(world, scripted.url, "whsec_" + "c2VjcmV0" * 4, "state_requests: false")
    scripted.answer = lambda request: Answer(422) if "7" in request.keys else willing(request)
    for n in range(20):
        world.db.put("orders", {"id": f"{n}", "n": n})
    world.catch_up()
    (parked,) = world.lines("parked", "list", world.config)
    assert "the receiver rejects the event (status 422)" in json.dumps(parked)
    accepted = {key for request in scripted.changes if "7" not in request.keys for key in request.keys}
    assert accepted == {f"{n}" for n in range(20)} - {"7"}
    scripted.answer = willing
    code, _, err = world.call("parked", "retry", world.config, "--all")
    assert code == 0, err
    assert scripted.changes[-1].keys == ["7"]
    assert scripted.changes[-1].message["data"]["replaces_same"]


def before(receiver: Receiver, rejects: Callable[[Request], bool]) -> Callable[[Request], Answer]:
    """What stands before the documented receiver, and rejects some requests."""
    pool = HTTPConnectionPool("127.0.0.1", receiver.port)

    def answer(request: Request) -> Answer:
        if rejects(request):
            return Answer(422)
        found = pool.request("POST", "/in", body=request.body, headers=dict(request.headers))
        return Answer(found.status, body=found.data)

    return answer


def test_what_the_documented_receiver_accepted_beside_a_rejected_event_is_posted_and_counted_once(
    world: World, receiver: Receiver, scripted: Scripted
) -> None:
    accepted: list[Request] = []

    def rejects(request: Request) -> bool:
        is_bad = "7" in request.keys
        accepted.extend([] if is_bad else [request])
        return is_bad

    scripted.answer = before(receiver, lambda request: False)
    into(world, scripted.url, SECRET)
    for n in range(100):
        world.db.put("orders", {"id": f"{n}", "n": n})
    world.catch_up()
    (first,) = world.lines("status", world.config)
    scripted.answer = before(receiver, rejects)
    for n in range(400):
        world.db.put("orders", {"id": f"{n}", "n": n + 1000})
    for n in range(0, 400, 3):
        world.db.delete("orders", {"id": f"{n}"})
    world.catch_up()
    wanted = {str(item["id"]): int(str(item["n"])) for item in world.db.items("orders") if item["id"] != "7"}
    assert copied(receiver) == {**wanted, "7": 7}
    messages = {request.id: request for request in accepted}  # one may come twice, as a question
    posted = Counter((event["id"][0], event["version"]) for m in messages.values() for event in events_of(m))
    assert len(posted) >= 399
    assert max(posted.values()) == 1
    (then,) = world.lines("status", world.config)
    more = {name: count - first["counts"][name] for name, count in then["counts"].items()}
    assert more == {"read": 534, "applied": 533, "superseded": 0, "filtered": 0, "parked": 1}


def events_of(request: Request) -> list[Any]:
    return list(request.message["data"].get("events", ()))


def test_a_resync_leaves_a_receiver_no_document_that_the_source_does_not_have(
    notifying: World, receiver: Receiver
) -> None:
    """With checkpoints in Postgres. What was deleted in a gap is swept; tombstones are purged."""
    world = notifying
    world.change("target:", f"checkpoints: {{type: postgres, url: {world.postgres.url}}}\ntarget:")
    expected = changed(world)
    world.catch_up()
    assert copied(receiver) == expected
    receiver.query("UPDATE documents SET id = '[\"gone\"]' WHERE id = '[\"1\"]'")
    world.shell.run("resync", world.config, "--now", "--until", "caught-up")
    assert copied(receiver) == expected
    ((epoch,),) = receiver.query("SELECT epoch FROM epochs")
    assert epoch == 1025


def test_lost_checkpoints_are_a_gap_unless_the_receiver_is_not_asked(notifying: World, receiver: Receiver) -> None:
    world = notifying
    expected = changed(world)
    world.catch_up()
    for path in world.folder.glob("*.checkpoints*"):
        path.unlink()
    code, _, err = world.shell.run("run", world.config, "--until", "caught-up")
    assert (code, "written by epoch 1024 of a pipeline whose checkpoints are lost" in err) == (3, True), err
    world.change("type: webhook", "type: webhook\n  state_requests: false")
    assert world.shell.run("run", world.config, "--until", "caught-up")[0] == 0
    assert copied(receiver) == expected


def test_what_needs_a_target_that_can_be_read_is_refused_by_name(notifying: World) -> None:
    world = notifying
    world.catch_up()
    old = world.folder / "orders-old.yaml"
    old.write_text(Path(world.config).read_text())
    world.change("pipeline: orders", "pipeline: orders\nreplaces: orders-old.yaml")
    for command, text in (
        (["verify", str(old)], "webhook cannot compare documents"),
        (["strip", str(old)], "webhook"),
        (["rebuild", "start", world.config], "webhook"),
    ):
        code, _, err = world.call(*command)
        assert (code, text in err) == (2, True), err


def test_a_cutover_names_no_command_that_cannot_lead_to_a_yes(notifying: World) -> None:
    notifying.catch_up()
    code, out, err = notifying.call("cutover", notifying.config, "--wait", "--human")
    assert (code, err) == (7, "")
    assert "webhook cannot compare documents; what is at the receiver cannot be read: compare there, by version" in out
    assert "so the answer is never yes" in out
    assert "replicator verify" not in out
    assert "freeze" not in out
    (answer,) = notifying.lines("cutover", notifying.config)
    assert (answer["verdict"], answer["freeze"], answer["allow_again"]) == ("no", None, None)


def test_nothing_secret_of_an_address_is_shown(world: World, scripted: Scripted) -> None:
    world = into(world, f"{scripted.url}?token=TOKEN", "whsec_" + "c2VjcmV0" * 4, "headers: {Authorization: hunter2}")
    commands = (["check"], ["run", "--until", "caught-up"], ["status"])

    def refusing(request: Request) -> Answer:
        return Answer(401, {"location": request.path}, b"TOKEN hunter2")

    for answer in (refusing, willing, refusing):
        scripted.answer = answer
        for command, *options in commands:
            _, out, err = world.shell.run(command, world.config, *options)
            assert not any(secret in out + err for secret in ("TOKEN", "hunter2", "c2VjcmV0"))
