"""Server failures: transient ones are waited for with a reason, others say what to fix, and no batch is half stored."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import ValidationError

from connectors.postgres import Postgres, cleanup
from connectors.postgres.options import Server as ServerOptions
from connectors.postgres.session import Session
from replicator.batch import Batch, Outcome, Upsert, Write
from replicator.errors import ConfigError, SweepRefused, TransientError
from replicator.state import Save
from replicator.target.contract import Table
from replicator.testing.contract import at, batch, put, remove
from replicator.testing.contract.kit import exhaust
from replicator.testing.servers.postgres import PostgresServer
from replicator.version import FIRST_EPOCH
from tests.connectors.postgres.postgres_kit import PK, opened, owner, rows, run, target, typed, until
from tests.connectors.postgres.test_target import terminate
from tests.servers.postgres_fixtures import Database

pytestmark = pytest.mark.postgres

CONTRACT = Table("contract", PK)


@pytest.fixture
def one(one_postgres: Database) -> Postgres:
    found = opened(one_postgres, CONTRACT)
    found.checkpoints.claim(owner())
    return found


def _transient(one: Postgres, words: str) -> None:
    with pytest.raises(TransientError, match=words):
        one.write(batch(put({"pk": "a"}, 1), saves=[Save("shard", "s", 0, "1")]))


def _then_it_works(one: Postgres, database: Database) -> None:
    assert one.write(batch(put({"pk": "a"}, 1), saves=[Save("shard", "s", 0, "1")])) == Outcome()
    assert [row["pk"] for row in rows(database)] == ["a"]


def test_a_restart_of_the_server_is_waited_out(postgres: Database) -> None:
    one = opened(postgres, CONTRACT)
    postgres.server.stop("fast")
    _transient(one, "Postgres at 127.0.0.1:")
    _transient(one, "cannot be reached: .*Connection refused|cannot be reached: connection failed")
    postgres.server.start()
    _then_it_works(one, postgres)


def test_a_server_killed_during_batches_loses_and_repeats_nothing(postgres: Database) -> None:
    """What was answered is there after the crash; what was not is there wholly or not at all, and can come again."""
    one = opened(postgres, CONTRACT)
    one.checkpoints.claim(owner())
    done = 0
    for _ in range(3):
        for _ in range(5):
            _retrying(one, batch(put({"pk": f"{done}"}, 1), put({"pk": f"{done}'"}, 1), saves=[_position(done)]))
            done += 1
        unsure = batch(put({"pk": f"{done}"}, 1), put({"pk": f"{done}'"}, 1), saves=[_position(done)])
        one.send(one.encode(unsure))
        postgres.server.kill()
        postgres.server.start()
        try:
            one.collect()
        except TransientError:
            _retrying(one, unsure)
        done += 1
    assert {row["pk"] for row in rows(postgres)} == {f"{n}{prime}" for n in range(done) for prime in ("", "'")}
    (counts,) = target(postgres).checkpoints.read().counts.values()
    assert (counts.read, counts.applied, counts.superseded) == (2 * done, 2 * done, 0)


def _retrying(one: Postgres, given: Batch) -> None:
    """As a driver would: the same again, where it was unsure."""
    try:
        assert one.write(given) == Outcome()
    except TransientError:
        assert one.write(given) == Outcome()


def _position(done: int) -> Save:
    return Save("shard", "s", done, f"{done}")


def test_a_connection_cut_between_sending_and_collecting_stores_nothing_and_is_replaced(
    one: Postgres, one_postgres: Database
) -> None:
    with one_postgres.connect() as blocker:
        blocker.execute("BEGIN; LOCK TABLE contract IN SHARE MODE")
        one.send(one.encode(batch(put({"pk": "a"}, 1), saves=[Save("shard", "s", 0, "1")])))
        terminate(one_postgres)
    with pytest.raises(
        TransientError, match=r"Postgres at .*: (server closed the connection|the server is shutting down)"
    ):
        one.collect()
    assert rows(one_postgres) == []
    _then_it_works(one, one_postgres)


def test_a_read_only_session_is_waited_out(one: Postgres, one_postgres: Database) -> None:
    run(one_postgres, f'ALTER DATABASE "{one_postgres.name}" SET default_transaction_read_only = on')
    one.close()
    _transient(one, "the server is read-only")
    run(one_postgres, f'SET transaction_read_only = off; ALTER DATABASE "{one_postgres.name}" RESET ALL')
    one.close()
    _then_it_works(one, one_postgres)


def test_a_statement_that_is_cancelled_is_repeated(one: Postgres, one_postgres: Database) -> None:
    with one._session.connection() as own:
        own.execute("SET statement_timeout = '200ms'")
    with one_postgres.connect() as blocker:
        blocker.execute("BEGIN; LOCK TABLE contract IN SHARE MODE")
        _transient(one, "a statement was cancelled")
    _then_it_works(one, one_postgres)


def test_time_limits_of_the_database_are_not_those_of_a_run(one: Postgres, one_postgres: Database) -> None:
    """A piece of a sweep, or a batch, that takes longer than they allow would be repeated for ever."""
    limits = ["statement_timeout"]
    with one_postgres.connect() as connection:
        limits += ["transaction_timeout"] * (connection.info.server_version >= 170000)
    for limit in limits:
        run(one_postgres, f"ALTER DATABASE \"{one_postgres.name}\" SET {limit} = '200ms'")
    one.close()
    with one._session.connection() as own:
        assert [own.execute(f"SHOW {limit}".encode()).fetchone() for limit in limits] == [("0",)] * len(limits)
        own.execute("SELECT pg_sleep(0.4)")
    run(one_postgres, f'ALTER DATABASE "{one_postgres.name}" RESET ALL')
    _then_it_works(one, one_postgres)


def test_a_transaction_that_exceeds_the_servers_time_limit_is_retried(one: Postgres, one_postgres: Database) -> None:
    with one_postgres.connect() as blocker:
        blocker.execute("BEGIN; LOCK TABLE contract")
        for use in (lambda: one.empty([CONTRACT]), lambda: one.write(batch(put({"pk": "a"}, 1)))):
            with one._session.connection() as own:
                own.execute("SET transaction_timeout = '200ms'")
            with pytest.raises(TransientError, match=r"\(transaction_timeout\?\)|server closed the connection"):
                use()
    _then_it_works(one, one_postgres)


def test_a_table_locked_by_another_session_is_waited_for(one: Postgres, one_postgres: Database) -> None:
    """The session gives up after a while, so that a run can say what it waits for."""
    with one._session.connection() as own:
        own.execute("SET lock_timeout = '100ms'")  # the test has less patience
    with one_postgres.connect() as blocker:
        blocker.execute("BEGIN; LOCK TABLE contract IN SHARE MODE")
        _transient(one, "another session holds a lock")
    _then_it_works(one, one_postgres)


def test_a_deadlock_is_waited_out(one: Postgres, one_postgres: Database) -> None:
    """Somebody else updates two rows in the other order: one is the victim, and if it is us we come again."""
    one.write(batch(put({"pk": "a"}, 1), put({"pk": "z"}, 1)))
    run(one_postgres, f"ALTER DATABASE \"{one_postgres.name}\" SET deadlock_timeout = '2s'")  # by then both wait
    one.close()
    with one_postgres.connect() as blocker, ThreadPoolExecutor(1) as threads:
        blocker.execute("SET deadlock_timeout = '60s'; BEGIN; UPDATE contract SET document = '{}' WHERE pk = 'z'")
        ours = threads.submit(one.write, batch(put({"pk": "a"}, 2), put({"pk": "z"}, 2)))
        until(one_postgres, "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        blocker.execute("UPDATE contract SET document = '{}' WHERE pk = 'a'; COMMIT")
        with pytest.raises(TransientError, match="a deadlock"):
            ours.result(30)
    assert one.write(batch(put({"pk": "a"}, 2), put({"pk": "z"}, 2))) == Outcome()
    assert {row["_version"] for row in rows(one_postgres)} == {at(2)}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("40001", "a serialization failure"),
        ("53100", "its disk is full"),
        ("53200", "it is out of memory"),
        ("57P02", "the server crashed and restarts"),
        ("58030", r"a trigger or function raised IoError \(SQLSTATE 58030\)"),
    ],
)
def test_a_transient_error_is_waited_out(one: Postgres, one_postgres: Database, state: str, words: str) -> None:
    """As the server gives it; a trigger does."""
    run(
        one_postgres,
        f"""CREATE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{state}'; END $$;
        CREATE TRIGGER trouble BEFORE INSERT ON contract FOR EACH ROW EXECUTE FUNCTION trouble()""",
    )
    _transient(one, rf"^Postgres at 127.0.0.1:\d+/\w+: {words}$")
    run(one_postgres, "DROP TRIGGER trouble ON contract")
    _then_it_works(one, one_postgres)


def test_a_server_without_free_connections_is_waited_for(one: Postgres, one_postgres: Database) -> None:
    one.close()
    run(one_postgres, f'ALTER DATABASE "{one_postgres.name}" CONNECTION LIMIT 1')
    run(one_postgres, "CREATE ROLE many LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO many")
    crowd = target(one_postgres, url=one_postgres.server.url(one_postgres.name, "many"))
    with one_postgres.connect(), pytest.raises(TransientError, match="too many connections"):
        crowd.check([CONTRACT])
    run(one_postgres, "DROP OWNED BY many; DROP ROLE many")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            "DROP TABLE contract",
            ConfigError,
            'relation "public.contract" does not exist; it was dropped or changed',
        ),
        ("ALTER TABLE contract DROP COLUMN document", ConfigError, 'column "document" of relation "contract" does not'),
        (
            "ALTER TABLE contract ALTER document TYPE bytea USING ''",
            ConfigError,
            "is of type bytea but expression is of",
        ),
        (
            "ALTER TABLE contract DROP CONSTRAINT contract_pkey",
            ConfigError,
            "no unique or exclusion constraint matching",
        ),
        ("DROP SCHEMA replicator CASCADE", ConfigError, "does not exist; it was dropped or changed: run check"),
    ],
)
def test_a_table_changed_meanwhile_is_reported(
    one: Postgres, one_postgres: Database, change: str, error: Any, words: str
) -> None:
    one.write(batch(put({"pk": "b"}, 1)))
    run(one_postgres, change)
    with pytest.raises(error) as refused:
        one.write(batch(put({"pk": "a"}, 1)))
    assert words in str(refused.value)
    assert str(refused.value).startswith("Postgres at 127.0.0.1:")


# rows that only the server can refuse


CONSTRAINED = """CREATE TABLE contract (pk text PRIMARY KEY, total numeric CHECK (total < 100), email text UNIQUE,
_version bigint NOT NULL)"""


@pytest.fixture
def constrained(postgres: Database) -> Postgres:
    run(postgres, CONSTRAINED)
    found = opened(postgres, typed(total="numeric", email="text"))
    found.checkpoints.claim(owner())
    return found


def test_rows_that_the_server_refuses_are_singled_out(constrained: Postgres, postgres: Database) -> None:
    """By halving, in a transaction that leaves nothing: no row, no entry, no tombstone, no count."""
    good = [put({"pk": f"{n:04}", "total": n % 100, "email": f"{n}@"}, 1) for n in range(500)]
    poor = [put({"pk": f"{n:04}x", "total": 12345}, 1) for n in (7, 250, 499)]
    twice = put({"pk": "0499y", "email": "0@"}, 1)
    saves = [Save("shard", "s", 0, "1")]
    outcome = constrained.write(batch(*good, *poor, twice, remove("gone", 5), saves=saves, tombstones=True))
    assert {r.write.id: r.reason for r in outcome.rejections} == {
        **{w.id: "the check constraint contract_total_check of contract refuses it" for w in poor},
        twice.id: "another row of contract has the same value under the unique constraint contract_email_key",
    }
    assert rows(postgres) == []
    state = constrained.checkpoints.read()
    assert ([e.kind for e in state.entries], state.counts) == (["owner"], {})
    assert constrained.purge(CONTRACT, at(9)) == 0
    assert constrained.write(batch(*good, remove("gone", 5), saves=saves, tombstones=True)) == Outcome()
    assert len(rows(postgres)) == 500


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("ALTER TABLE contract ALTER COLUMN email SET NOT NULL", "column email of contract must not be null"),
        (
            "CREATE TABLE emails (email text PRIMARY KEY);"
            "ALTER TABLE contract ADD CONSTRAINT known FOREIGN KEY (total_text) REFERENCES emails",
            "the foreign key known of contract refuses it",
        ),
        (
            """CREATE FUNCTION picky() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN IF NEW.total = 13 THEN RAISE EXCEPTION 'secret %', NEW.total; END IF; RETURN NEW; END $$;
            CREATE TRIGGER picky BEFORE INSERT ON contract FOR EACH ROW EXECUTE FUNCTION picky()""",
            "a trigger of contract refuses it",
        ),
        (
            "CREATE INDEX divided ON contract ((1 / (13 - total)))",
            "Postgres refuses it for contract: DivisionByZero (SQLSTATE 22012)",
        ),
    ],
)
def test_a_users_constraint_or_trigger_may_refuse_rows(
    constrained: Postgres, postgres: Database, statement: str, words: str
) -> None:
    run(postgres, "ALTER TABLE contract ADD COLUMN total_text text GENERATED ALWAYS AS (nullif(total, 1)::text) STORED")
    run(postgres, statement)
    poor = put({"pk": "b", "total": 13}, 1)
    fine = put({"pk": "a", "total": 1, "email": "a"}, 1)
    (rejection,) = constrained.write(batch(poor, fine)).rejections
    assert (rejection.write, rejection.reason) == (poor, words)
    assert constrained.write(batch(fine)) == Outcome()


@pytest.mark.parametrize(
    ("constraint", "reason"),
    [
        ("UNIQUE (total)", "another row of contract has the same value under the unique constraint late"),
        ("EXCLUDE (total WITH =)", "another row of contract excludes it, by the exclusion constraint late"),
        ("FOREIGN KEY (email) REFERENCES emails", "the foreign key late of contract refuses it"),
    ],
)
def test_a_row_refused_by_a_deferred_constraint_is_parked(
    constrained: Postgres, postgres: Database, constraint: str, reason: str
) -> None:
    run(postgres, "CREATE TABLE emails (email text PRIMARY KEY); INSERT INTO emails VALUES ('a'), ('b'), ('c')")
    run(postgres, f"ALTER TABLE contract ADD CONSTRAINT late {constraint} DEFERRABLE INITIALLY DEFERRED")
    fine = [put({"pk": "a", "total": 1, "email": "a"}, 1), put({"pk": "b", "total": 2, "email": "b"}, 1)]
    poor = put({"pk": "c", "total": 2, "email": "nowhere"}, 1)
    (rejection,) = constrained.write(batch(*fine, poor)).rejections
    assert (rejection.write, rejection.reason) == (poor, reason)
    assert constrained.write(batch(*fine)) == Outcome()
    assert [row["pk"] for row in rows(postgres)] == ["a", "b"]


def test_a_row_is_not_blamed_for_needing_one_that_comes_later_in_its_batch(
    constrained: Postgres, postgres: Database
) -> None:
    """Where the constraint is deferred, as the whole batch would be taken, only the row that nothing helps is."""
    run(postgres, "ALTER TABLE contract ADD CONSTRAINT late UNIQUE (total) DEFERRABLE INITIALLY DEFERRED")
    run(
        postgres,
        "ALTER TABLE contract ADD boss text GENERATED ALWAYS AS (nullif(email, 'none')) STORED;"
        "ALTER TABLE contract ADD FOREIGN KEY (boss) REFERENCES contract DEFERRABLE INITIALLY DEFERRED",
    )
    chain = [put({"pk": pk, "email": boss}, 1) for pk, boss in [("a", "b"), ("b", "c"), ("c", "none"), ("d", "a")]]
    poor = put({"pk": "e", "email": "nowhere"}, 1)
    outcome = constrained.write(batch(*chain, poor))
    assert [r.write for r in outcome.rejections] == [poor]
    assert constrained.write(batch(*chain)) == Outcome()


def test_a_row_is_not_blamed_for_a_value_that_a_delete_in_its_batch_frees(
    constrained: Postgres, postgres: Database
) -> None:
    constrained.write(batch(put({"pk": "old", "email": "a"}, 1)))
    heir, poor = put({"pk": "heir", "email": "a"}, 2), put({"pk": "x", "total": 1000}, 2)
    outcome = constrained.write(batch(heir, poor, remove("old", 2)))
    assert [r.write for r in outcome.rejections] == [poor]
    assert constrained.write(batch(heir, remove("old", 2))) == Outcome()


def test_a_row_that_conflicts_only_because_of_the_order_in_its_batch_is_refused(
    constrained: Postgres, postgres: Database
) -> None:
    """One statement takes rows in the order of keys, so this batch is refused, though its rows fit one by one."""
    constrained.write(batch(put({"pk": "z", "email": "a"}, 1)))
    heir, giver = put({"pk": "b", "email": "a"}, 2), put({"pk": "z", "email": "c"}, 2)
    outcome = constrained.write(batch(heir, giver))
    assert [r.write for r in outcome.rejections] == [heir]
    assert constrained.write(batch(giver)) == Outcome()


def test_a_constraint_that_is_deferrable_but_not_deferred_is_checked_when_it_is_in_a_batch(
    constrained: Postgres, postgres: Database
) -> None:
    run(
        postgres,
        "ALTER TABLE contract ADD CONSTRAINT soon UNIQUE (total) DEFERRABLE INITIALLY IMMEDIATE;"
        "ALTER TABLE contract ADD CONSTRAINT later UNIQUE (email, total) DEFERRABLE INITIALLY DEFERRED",
    )
    constrained.write(batch(put({"pk": "a", "total": 1}, 1)))
    poor, fine = put({"pk": "b", "total": 1}, 2), put({"pk": "c", "total": 2}, 2)
    outcome = constrained.write(batch(poor, fine))
    assert [r.write for r in outcome.rejections] == [poor]


def test_a_document_nested_too_deeply_for_the_server_is_refused(one: Postgres) -> None:
    """The server's limit or ours: either way one document is refused and the session continues."""
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    poor = Upsert("contract", ("deep",), {"deep": deep}, at(1), ("deep",))
    assert [r.write for r in one.write(batch(poor, put({"pk": "a"}, 1))).rejections] == [poor]
    assert one.write(batch(put({"pk": "a"}, 1))) == Outcome()


def test_a_refusal_names_the_right_one_of_two_tables(postgres: Database) -> None:
    run(postgres, CONSTRAINED)
    one = opened(postgres, typed(total="numeric", email="text"), Table("other", PK))
    poor = put({"pk": "a", "total": 1000}, 1)
    outcome = one.write(batch(put({"pk": "a"}, 1, table="other"), poor, remove("x", 1, table="other")))
    assert [r.write for r in outcome.rejections] == [poor]


def test_an_interrupt_while_waiting_leaves_a_usable_target(one: Postgres, one_postgres: Database) -> None:
    """A signal handler may raise in the middle of a response; the next call opens a new connection."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with one_postgres.connect() as blocker:
            blocker.execute("BEGIN; LOCK TABLE contract IN SHARE MODE")
            one.send(one.encode(batch(put({"pk": "a"}, 1), saves=[Save("shard", "s", 0, "1")])))
            main = threading.main_thread().ident
            ringing = threading.Timer(0.2, signal.pthread_kill, [main, signal.SIGUSR1])
            ringing.start()
            with pytest.raises(KeyboardInterrupt):
                one.collect()
            ringing.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert one.write(batch(put({"pk": "a"}, 1), saves=[Save("shard", "s", 0, "1")])) == Outcome()
    assert len(rows(one_postgres)) == 1


# rows that a trigger skips


SKIP = """CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
IF coalesce(OLD.pk, NEW.pk) LIKE 'skip%' THEN RETURN NULL; END IF;
RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END; END $$"""
SKIPPED = "a trigger of contract skipped it, by returning NULL"


def _skipping(database: Database, events: str) -> None:
    run(database, f"{SKIP}; CREATE TRIGGER skip BEFORE {events} ON contract FOR EACH ROW EXECUTE FUNCTION skip()")


def _counted(one: Postgres) -> tuple[int, int]:
    counts = list(one.checkpoints.read().counts.values())
    return sum(c.applied for c in counts), sum(c.superseded for c in counts)


@pytest.mark.parametrize("tombstones", [False, True])
@pytest.mark.parametrize("events", ["INSERT", "UPDATE", "INSERT OR UPDATE OR DELETE"])
def test_a_row_that_a_trigger_skips_is_refused_and_the_rest_of_its_batch_is_stored(
    constrained: Postgres, postgres: Database, events: str, tombstones: bool
) -> None:
    updated = events == "UPDATE"
    constrained.write(batch(put({"pk": "newer", "total": 9}, 9), put({"pk": "skip old", "total": 1}, 1)))
    _skipping(postgres, events)
    skipped = put({"pk": "skip old" if updated else "skip new", "total": 2}, 2)
    others = [put({"pk": "a", "total": 2}, 2), put({"pk": "newer", "total": 2}, 2), put({"pk": "z", "total": 2}, 2)]
    outcome = constrained.write(batch(*others, skipped, tombstones=tombstones))
    assert [(r.write, r.reason) for r in outcome.rejections] == [(skipped, SKIPPED)]
    assert constrained.write(batch(*others, tombstones=tombstones)).superseded == {"shard:contract": 1}
    totals = {row["pk"]: row["total"] for row in rows(postgres)}
    assert totals == {"a": 2, "newer": 9, "z": 2, "skip old": 1}


@pytest.mark.parametrize("tombstones", [False, True])
def test_a_delete_that_a_trigger_skips_is_refused_and_the_rest_of_its_batch_is_stored(
    constrained: Postgres, postgres: Database, tombstones: bool
) -> None:
    """A delete of what is not there, and one that is older than its row, are none."""
    constrained.write(batch(*(put({"pk": pk, "total": 1}, 1) for pk in ("a", "skip", "skipped too"))))
    constrained.write(batch(put({"pk": "skip newer", "total": 1}, 9)))
    _skipping(postgres, "DELETE")
    others: list[Write] = [remove("a", 2), remove("skip newer", 2), remove("skip absent", 2), put({"pk": "z"}, 2)]
    skipped = [remove("skip", 2), remove("skipped too", 2)]
    outcome = constrained.write(batch(*others, *skipped, tombstones=tombstones))
    assert {(r.write.id, r.reason) for r in outcome.rejections} == {(w.id, SKIPPED) for w in skipped}
    assert _counted(constrained) == (4, 0), "nothing of a batch that is refused counts"
    assert constrained.write(batch(*others, tombstones=tombstones)).superseded == {"shard:contract": 1}
    assert _counted(constrained) == (7, 1)
    assert [row["pk"] for row in rows(postgres)] == ["skip", "skip newer", "skipped too", "z"]


def test_a_delete_whose_trigger_changes_the_row_is_refused_and_the_rest_of_its_batch_is_stored(
    constrained: Postgres, postgres: Database
) -> None:
    constrained.write(batch(put({"pk": "a", "total": 1}, 1), put({"pk": "b", "total": 1}, 1)))
    run(
        postgres,
        """CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        UPDATE public.contract SET total = 2 WHERE pk = OLD.pk AND pk = 'a'; RETURN OLD; END $$;
        CREATE TRIGGER touch BEFORE DELETE ON contract FOR EACH ROW EXECUTE FUNCTION touch()""",
    )
    outcome = constrained.write(batch(remove("a", 2), remove("b", 2)))
    (rejection,) = outcome.rejections
    assert (rejection.write.id, rejection.reason) == (
        ("a",),
        "Postgres refuses it for contract: TriggeredDataChangeViolation (SQLSTATE 27000)",
    )
    assert constrained.write(batch(remove("b", 2))) == Outcome()
    assert [row["pk"] for row in rows(postgres)] == ["a"]


def test_a_trigger_that_skips_deletes_ends_a_sweep(one: Postgres, one_postgres: Database) -> None:
    one.write(batch(put({"pk": "free"}, 1), put({"pk": "skip"}, 1)))
    _skipping(one_postgres, "DELETE")
    with pytest.raises(SweepRefused, match="skipped it, by returning NULL"):
        _swept(one)
    assert [row["pk"] for row in rows(one_postgres)] == ["skip"]


def test_a_row_that_another_session_changes_meanwhile_is_not_mistaken_for_skipped(
    one: Postgres, one_postgres: Database
) -> None:
    """What it commits is newer than what the statement looked at; it is written again, and finds it."""
    one.write(batch(put({"pk": "a"}, 1), put({"pk": "b"}, 1)))
    with one_postgres.connect() as blocker, ThreadPoolExecutor(1) as threads:
        blocker.execute("BEGIN")
        blocker.execute("UPDATE contract SET _version = %s WHERE pk = 'a'", (at(5),))
        blocker.execute("DELETE FROM contract WHERE pk = 'b'")
        ours = threads.submit(one.write, batch(put({"pk": "a"}, 2), remove("b", 2)))
        until(one_postgres, "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        blocker.execute("COMMIT")
        assert ours.result(30) == Outcome(superseded={"shard:contract": 1})
    assert [row["_version"] for row in rows(one_postgres)] == [at(5)]


# rows that a sweep cannot delete


OLDER = at(0, FIRST_EPOCH + 1)  # all that this epoch wrote


def _swept(one: Postgres, table: Table = CONTRACT) -> int:
    return exhaust(lambda: one.sweep(table, OLDER, []))


def test_a_row_that_others_refer_to_ends_the_sweep_with_the_constraints_name(
    one: Postgres, one_postgres: Database
) -> None:
    one.write(batch(*(put({"pk": pk}, 1) for pk in ("free", "kept", "secret"))))
    run(one_postgres, "CREATE TABLE public.notes (pk text CONSTRAINT about REFERENCES public.contract)")
    run(one_postgres, "INSERT INTO public.notes VALUES ('kept'), ('secret')")
    with pytest.raises(SweepRefused) as refused:
        _swept(one)
    assert str(refused.value) == (
        '"public"."contract": rows that the last scan of the source did not find cannot be deleted (2): the foreign '
        "key about of notes refuses it. Delete the rows that refer to them, or change the constraint or "
        "trigger, then start the run again: it resumes this cleanup"
    )
    assert [row["pk"] for row in rows(one_postgres)] == ["kept", "secret"]
    run(one_postgres, "DELETE FROM public.notes")
    assert _swept(one) == 2
    assert rows(one_postgres) == []


def test_a_sweep_removes_rows_that_refer_to_each_other_in_any_order(one: Postgres, one_postgres: Database) -> None:
    """The row that holds another back comes in a later piece."""
    one.write(batch(*(put({"pk": pk, "boss": boss}, 1) for pk, boss in [("a", None), ("b", "a"), ("c", "b")])))
    run(
        one_postgres,
        "ALTER TABLE contract ADD boss text GENERATED ALWAYS AS (document ->> 'boss') STORED REFERENCES contract",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cleanup, "_PIECE", 2)
        assert _swept(one) == 3
    assert rows(one_postgres) == []


def test_a_row_that_a_trigger_restores_ends_the_sweep(one: Postgres, one_postgres: Database) -> None:
    one.write(batch(put({"pk": "free"}, 1), put({"pk": "kept"}, 1)))
    run(
        one_postgres,
        """CREATE FUNCTION back() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN IF OLD.pk = 'kept' THEN INSERT INTO public.contract VALUES (OLD.*); END IF; RETURN NULL; END $$;
        CREATE TRIGGER back AFTER DELETE ON contract FOR EACH ROW EXECUTE FUNCTION back()""",
    )
    for _ in range(2):
        with pytest.raises(SweepRefused, match="it reappears after it was deleted"):
            _swept(one)
        assert [row["pk"] for row in rows(one_postgres)] == ["kept"]


def test_a_sweep_stops_looking_after_too_many_rows_that_cannot_be_deleted(
    one: Postgres, one_postgres: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleanup, "_PIECE", 2)
    monkeypatch.setattr(cleanup, "_MOST_HELD", 2)
    one.write(batch(*(put({"pk": f"{n}"}, 1) for n in range(7))))
    run(one_postgres, "CREATE TABLE public.notes (pk text REFERENCES public.contract)")
    run(one_postgres, "INSERT INTO public.notes SELECT pk FROM public.contract")
    with pytest.raises(SweepRefused, match=r"cannot be deleted \(at least 2\)"):
        _swept(one)
    assert len(rows(one_postgres)) == 7


def test_a_password_that_is_changed_is_waited_for_and_its_file_is_read_again(tmp_path: Path) -> None:
    """A password file, as libpq and mounted secrets have it. The server requires a password of every role."""
    passwords = tmp_path / "passwords"

    def write(password: str) -> None:
        passwords.write_text(f"*:*:*:app:{password}\n")
        passwords.chmod(0o600)

    with PostgresServer(password="administrator") as server, psycopg.connect(server.url(), autocommit=True) as admin:
        admin.execute("CREATE ROLE app LOGIN PASSWORD 'first'")
        url = server.url(user="app").replace(":administrator@", "@")
        write("first")
        session = Session(ServerOptions.model_validate({"url": f"{url}?passfile={passwords}"}))
        with session.connection():
            pass
        admin.execute("ALTER ROLE app PASSWORD 'second'")
        session.close()
        refused = pytest.raises(TransientError, match=r"password authentication failed .*It was accepted before")
        with refused as waiting, session.connection():
            pass
        assert "a password file (password_file, or passfile= in target.url) is read at each attempt" in str(
            waiting.value
        )
        write("second")
        with session.connection():
            pass
        session.close()


def test_a_file_with_the_password_alone_is_read_at_each_login(tmp_path: Path) -> None:
    """As Kubernetes mounts a secret: others may read it, and it is replaced, so for a moment it may be missing."""
    file = tmp_path / "password"

    def refused(kind: type[Exception], words: str) -> None:
        with pytest.raises(kind, match=words), session.connection():
            pass

    with PostgresServer(password="administrator") as server, psycopg.connect(server.url(), autocommit=True) as admin:
        admin.execute("CREATE ROLE app LOGIN PASSWORD 'first'")
        url = server.url(user="app").replace(":administrator@", "@")
        session = Session(ServerOptions.model_validate({"url": url, "password_file": str(file)}))
        refused(ConfigError, f"target.password_file: {file} cannot be read: No such file")
        file.write_bytes(b"\xff")
        refused(ConfigError, "is not text")
        file.write_text("first\n")
        file.chmod(0o644)
        with session.connection():
            pass
        admin.execute("ALTER ROLE app PASSWORD 'second'")
        session.close()
        refused(TransientError, "It was accepted before")
        file.write_text("")
        refused(TransientError, f"target.password_file: {file} is empty")
        file.write_text("second")
        with session.connection():
            pass
        session.close()


@pytest.mark.parametrize(
    ("url", "file", "problem"),
    [
        ("postgresql://app@localhost/shop", "password", "must be an absolute path"),
        ("postgresql://app:secret@localhost/shop", "/run/password", "url has a password, too; remove one of them"),
    ],
)
def test_a_password_has_one_place_which_does_not_depend_on_a_folder(url: str, file: str, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        ServerOptions.model_validate({"url": url, "password_file": file})
