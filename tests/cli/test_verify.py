"""``replicator verify``: what is asked for, what is printed, and what is refused with which words."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import orjson
import pytest

from replicator.config.settings import load
from replicator.engine.assembly import ends
from replicator.engine.context import Environment
from replicator.operations.parked import void_verified
from replicator.operations.verify import Progress, Request, verify
from replicator.pipeline.progress import passes_of
from replicator.state import Verified, decode, encode
from replicator.verification.differences import Finding
from replicator.verification.verifier import Result
from tests.cli.command_line import World, endpoint
from tests.end_to_end.pipeline import eventually

HOOK = """from replicator import Document, documents

@documents
def hook(item):
    for n in range(int(item["n"])):
        yield Document(f"line-{n}", {"n": n})
"""


@contextmanager
def live(world: World) -> Iterator[None]:
    with world.shell.start("run", world.config, "--json") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if orjson.loads(line).get("phase") == "live":
                break
        yield
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture
def copied(world: World) -> World:
    """Ten items, copied; no run is up."""
    world.db.create_table("orders")
    for n in range(10):
        world.db.put("orders", {"id": str(n), "n": n})
    world.catch_up()
    return world


def change(world: World, statement: str) -> None:
    with world.postgres.connect() as connection:
        connection.execute(statement.encode())
        connection.commit()


def test_a_pass_is_noted_and_shown_by_status(copied: World) -> None:
    (total,) = copied.lines("verify", copied.config)
    assert (total["result"], total["scope"], total["items"], total["documents"]) == ("equal", "full", 10, 10)
    (status,) = copied.lines("status", copied.config)
    noted = status["verified"]
    assert (noted["scope"], noted["items"], noted["differences"], noted["unconfirmed"]) == ("full", 10, 0, 0)
    assert noted["ended_at"] >= noted["started_at"] > 0


def test_a_pass_during_which_parked_changes_were_discarded_is_not_noted(
    copied: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Discarding:
        """Another command discards parked changes once the pass has noted itself."""

        def progress(self, progress: Progress) -> None:
            void_verified(checkpoints)

        def result(self, result: Result) -> None: ...
        def waiting(self, reason: str | None) -> None: ...
        def repair(self, finding: Finding, reason: str) -> None: ...

    for name, value in copied.environ.items():
        monkeypatch.setenv(name, value)
    config = load(copied.config)
    with ends(config) as (_, checkpoints):
        tally = verify(config, Request(), Discarding(), Environment(threading.Event(), lambda _: None))
        assert tally.exit_code == 0
        assert passes_of(checkpoints.read().entries) == {}


def test_differences_are_named_in_text_by_key_and_fields_without_values(copied: World) -> None:
    change(copied, "UPDATE orders SET document = document || '{\"n\": -5}' WHERE id = '3'")
    change(copied, "DELETE FROM orders WHERE id = '4'")
    with live(copied):
        code, out, _ = copied.call("verify", copied.config, "--human")
        key_code, key_out, _ = copied.call("verify", copied.config, "--key", '{"id": "3"}', "--human")
        other_code, *_ = copied.call("verify", copied.config, "--key", '{"id": "5"}', "--human")
    assert code == key_code == 6
    assert other_code == 0
    assert 'different   ["3"] in orders: n' in out.splitlines()
    assert 'missing     ["4"] in orders' in out.splitlines()
    assert "10 items and 10 documents compared: 2 differences (1 missing, 0 extra, 1 different)" in out
    assert out.splitlines()[-1] == "the copy does not equal the source"
    assert 'different   ["3"] in orders: n' in key_out.splitlines()
    assert "-5" not in out


def test_documents_with_ids_of_their_own_are_compared_as_the_set_of_their_item(world: World) -> None:
    world.hook(HOOK)
    world.db.create_table("orders", view="NEW_AND_OLD_IMAGES")
    world.db.put("orders", {"id": "a", "n": 2})
    world.db.put("orders", {"id": "k" * 600, "n": 1})
    world.catch_up()
    assert world.lines("verify", world.config)[-1]["result"] == "equal"
    change(world, "UPDATE orders SET _id = 'line-7' WHERE _id = 'line-1'")
    with live(world):
        *found, total = world.lines("verify", world.config)
        *of_key, _ = world.lines("verify", world.config, "--key", '{"id": "a"}')
    wanted = {("missing", "line-1"), ("extra", "line-7")}
    assert {(line["kind"], line["id"][1]) for line in found} == wanted
    assert {(line["kind"], line["id"][1]) for line in of_key} == wanted
    assert (total["items"], total["missing"], total["extra"]) == (2, 1, 1)


def test_a_sample_tells_its_confidence(copied: World) -> None:
    (total,) = copied.lines("verify", copied.config, "--sample", "99%")
    assert (total["result"], total["scope"], total["confidence"]) == ("equal", "99 %", 0.95)
    assert 0 < total["items"] <= 10
    assert total["at_most"] == pytest.approx(1 - 0.05 ** (1 / total["items"]), rel=1e-6)
    _, out, _ = copied.call("verify", copied.config, "--sample", "99%", "--human")
    assert f"0 of {total['items']} sampled items differ: at most" in out or "sampled items differ: at most" in out
    assert "with 95 % confidence" in out


def test_a_sample_without_an_item_says_nothing_and_one_that_is_equal_does_not_speak_of_the_whole_copy(
    copied: World,
) -> None:
    code, out, _ = copied.call("verify", copied.config, "--sample", "0.0001%", "--human")
    assert (code, "the sample has no item: verify a larger one" in out) == (7, True), out
    for of in (("--sample", "99%"), ("--key", '{"id": "1"}')):
        code, out, _ = copied.call("verify", copied.config, *of, "--human")
        assert (code, "what was compared is equal; it is not the whole table" in out) == (0, True), out
        assert of[0] == "--sample" or "1 items and 1 documents compared: 0 differences" in out, out
        assert "the copy equals the source" not in out


def test_documents_of_long_keys_that_a_sample_does_not_read_are_not_reported(world: World) -> None:
    world.hook(HOOK)
    world.db.create_table("orders")
    for n in range(30):
        world.db.put("orders", {"id": f"{n}{'k' * 600}", "n": 2})
    world.catch_up()
    code, out, err = world.call("verify", world.config, "--sample", "50%", "--json")
    assert code == 0, (out, err)


def test_what_a_run_parked_is_told_apart(world: World) -> None:
    world.hook("def hook(item):\n    return {'n': item['n']}\n")
    world.db.create_table("orders")
    world.db.put("orders", {"id": "1", "n": 1})
    world.db.put("orders", {"id": "2"})
    world.catch_up()
    *found, total = world.lines("verify", world.config)
    assert [(line["result"], line["id"]) for line in found] == [("parked", ["2"])]
    assert (total["result"], total["parked"], total["differences"]) == ("not equal", 1, 0)


def note(world: World, value: Verified) -> None:
    """Store the note of a pass."""
    with world.postgres.connect() as connection:
        connection.execute(
            "INSERT INTO replicator.checkpoints (pipeline, kind, id, revision, value) "
            "VALUES ('orders', 'verified', %s, 1, %s)",
            ("pass" if value.ended is None else "", encode(value)),
        )
        connection.commit()


def test_a_document_that_only_the_server_refuses_is_told_as_parked_and_the_others_are_compared(world: World) -> None:
    world.hook(
        "from decimal import Decimal\n\n"
        "def hook(item):\n"
        '    return {"n": Decimal("1E+200000") if item["n"] == 3 else item["n"]}\n'
    )
    world.db.create_table("orders")
    for n in range(8):
        world.db.put("orders", {"id": str(n), "n": n})
    world.catch_up()
    with live(world):
        *found, total = world.lines("verify", world.config)
    assert [(line["result"], line["id"]) for line in found] == [("parked", ["3"])]
    assert (total["parked"], total["differences"], total["documents"]) == (1, 0, 8)


def test_an_interrupted_pass_is_resumed_where_it_was(copied: World) -> None:
    now = time.time()
    note(copied, Verified(now, now, 1024, "full", 4, (0, 1, 2, 3), (), items=10, documents=10, differences=1))
    (total,) = copied.lines("verify", copied.config, "--resume")
    assert (total["items"], total["documents"], total["differences"]) == (10, 10, 1)
    assert total["result"] == "not equal"


def noted(world: World) -> Verified | None:
    """What is noted of the last pass."""
    with world.postgres.connect() as connection:
        row = connection.execute("SELECT value::text FROM replicator.checkpoints WHERE kind = 'verified'").fetchone()
    value = None if row is None else decode("verified", "", row[0])
    assert value is None or isinstance(value, Verified)
    return value


def test_a_pass_that_was_killed_is_resumed(copied: World) -> None:
    process = copied.shell.start("verify", copied.config, "--read-units", "1")
    try:
        eventually(lambda: noted(copied), "a note of the pass")
    finally:
        process.kill()
        process.communicate(timeout=60)
    left = noted(copied)
    assert left is not None
    assert left.ended is None
    (total,) = copied.lines("verify", copied.config, "--resume")
    assert (total["result"], total["items"], total["documents"]) == ("equal", 10, 10)
    after = noted(copied)
    assert after is not None
    assert (after.started, after.ended is None) == (left.started, False)


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (None, "--resume: there is no unfinished pass of this epoch"),
        (Verified(1.0, 2.0, 1024, "full", 4, ended=3.0), "--resume: there is no unfinished pass of this epoch"),
        (Verified(1.0, 2.0, 1023, "full", 4), "--resume: there is no unfinished pass of this epoch"),
        (Verified(1.0, 2.0, 1024, "full", 4, hook="another"), "--resume: the hook has changed since that pass began"),
        (
            Verified(1.0, 2.0, 1024, "full", 4, ttl_deletes="ignore"),
            "--resume: ttl_deletes has changed since that pass began",
        ),
        (Verified(1.0, 2.0, 1024, "5 %", 4), "--resume: the unfinished pass is of scope 5 %, not full"),
    ],
)
def test_what_cannot_be_resumed_is_refused(copied: World, stored: Verified | None, words: str) -> None:
    if stored is not None:
        note(copied, stored)
    code, _, err = copied.call("verify", copied.config, "--resume")
    assert (code, words in err) == (2, True), err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sample", "0%"], "'0%' is not a percentage; expected for example 1%"),
        (["--sample", "some"], "'some' is not a percentage"),
        (["--full", "--key", '{"id": "1"}'], "--full, --sample and --key exclude each other"),
        (["--resume", "--key", '{"id": "1"}'], "--resume: a single item is not a pass to continue"),
        (["--key", '{"pk": "1"}'], "--key: the key has the attributes id"),
    ],
)
def test_a_wrong_option_is_refused(copied: World, options: list[str], words: str) -> None:
    code, _, err = copied.call("verify", copied.config, *options)
    assert (code, words in err) == (2, True), err


def test_a_pipeline_that_never_ran_is_refused(world: World) -> None:
    world.db.create_table("orders")
    code, _, err = world.call("verify", world.config)
    assert (code, "there is no pipeline orders" in err) == (2, True), err


def test_a_target_that_cannot_compare_documents_is_refused(mirror: World) -> None:
    mirror.db.put("orders", {"id": "1"})
    mirror.catch_up()
    code, _, err = mirror.call("verify", mirror.config)
    assert (code, "target.type: sqlite cannot compare documents" in err) == (2, True), err


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_run_cannot_verify_what_cannot_be_compared(mirror: World, command: str) -> None:
    mirror.change("target:", "verify: {every: 1h}\ntarget:")
    code, _, err = mirror.call(command, mirror.config)
    assert (code, "verify: sqlite cannot compare documents; its connector would have to" in err) == (2, True), err


def test_check_says_what_the_passes_of_a_run_read_and_whether_they_may(copied: World) -> None:
    copied.change("target:", "verify: {every: 1m, read_units: 5}\ntarget:")
    code, out, _ = copied.call("check", copied.config, "--human")
    assert code == 0, out
    assert "ok    verify: the target's documents can be read" in out
    assert "note  verify: a pass takes up to 22 read units of the source, which is 4 s at 5 a second" in out
    assert "longer than verify.every" not in out
    for n in range(1000):
        copied.db.put("orders", {"id": f"more{n}", "n": n})
    copied.db.fail("BatchGetItem", "AccessDeniedException", times=None)
    code, out, _ = copied.call("check", copied.config, "--human")
    assert (code, "FAIL  permission: dynamodb:BatchGetItem on" in out) == (4, True), out
    assert "a pass may take longer than verify.every; the next one follows at once" in out


def test_check_reads_an_existing_table_of_which_the_plan_has_only_a_note(world: World) -> None:
    target = f"verify: {{every: 1h}}\ntarget:\n  type: dynamodb\n  region: us-east-1\n  endpoint_url: {endpoint(world)}"
    postgres = f"target:\n  type: postgres\n  url: {world.postgres.url}\n  table: orders"
    world.change(postgres, f"{target}\n  create: true\n  table: copy")
    world.db.create_table("orders")
    world.db.create_table("copy", view="KEYS_ONLY")
    world.db.create_table("replicator-epochs", keys={"table": "S"}, view=None)
    code, out, _ = world.call("check", world.config, "--human")
    assert (code, "run will execute:" in out) == (0, True), out
    assert "nothing, but note: the target's table copy has a stream" in out
    assert "ok    verify: the target's documents can be read" in out


def test_each_pipeline_of_a_process_verifies_its_own_copy(copied: World) -> None:
    copied.change("target:", "verify: {every: 1h, read_units: 1000}\ntarget:")
    other = copied.folder / "users.yaml"
    other.write_text((copied.folder / "orders.yaml").read_text().replace("orders", "users"))
    copied.db.create_table("users")
    copied.db.put("users", {"id": "1"})
    change(copied, "DELETE FROM orders WHERE id = '4'")
    left, found = {"orders", "users"}, []
    with copied.shell.start("run", copied.config, str(other), "--json") as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = orjson.loads(line)
            found += [event] if event["event"] == "difference" else []
            left -= {event["pipeline"]} if event["event"] == "verify ended" else set()
            if not left:
                break
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert [(e["pipeline"], e["kind"], e["id"]) for e in found] == [("orders", "missing", '["4"]')]
    status = copied.lines("status", copied.config, str(other))
    assert [(s["pipeline"], s["verified"]["items"]) for s in status] == [("orders", 10), ("users", 1)]


def test_a_pass_keeps_to_its_read_units(copied: World) -> None:
    (total,) = copied.lines("verify", copied.config, "--read-units", "1000")
    assert total["result"] == "equal"


def test_a_changed_hook_is_refused_as_by_a_run(copied: World) -> None:
    copied.hook("def hook(item):\n    return dict(item)\n")
    code, _, err = copied.call("verify", copied.config)
    assert (code, "transform: the hook was added since the last run" in err) == (2, True), err
