"""Two generations of a table and the exchange of their names: what goes along, what is refused, kills at each step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from connectors.postgres import Postgres, generations
from replicator.errors import ConfigError, Fenced
from replicator.operations.rebuild import exchanged
from replicator.state import Rebuild, Save, encode
from replicator.target.contract import Exchange, Table, TablesBusy
from replicator.testing.contract import batch, put
from tests.connectors.postgres.postgres_kit import PK, opened, owner, rows, run, target, until
from tests.servers.postgres_fixtures import Database

pytestmark = pytest.mark.postgres

OLD = Table("contract", PK, {"columns": {"made": "text"}})
NEW = Table("contract", PK, {"columns": {"made": "text", "more": "jsonb"}}, "contract_new")
FIRST, SECOND = "contract", "contract@new"
STARTED, SWITCHED = Rebuild(1.0), Rebuild(1.0, switched=True)


def noted(expected: int, rebuild: Rebuild | None) -> Save:
    return Save("rebuild", "", expected, None if rebuild is None else encode(rebuild))


def switch(expected: int = 1) -> Exchange:
    return Exchange([OLD], "_old", "_new", (FIRST, SECOND), noted(expected, SWITCHED))


def rollback(expected: int = 2) -> Exchange:
    return Exchange([replace(NEW, stored_as="")], "_new", "_old", (FIRST, SECOND), noted(expected, STARTED))


def finished(one: Postgres, expected: int = 2) -> None:
    retired, live = replace(OLD, stored_as="contract_old"), replace(NEW, stored_as="")
    one.succeed([retired], [live], SECOND, noted(expected, None))


@pytest.fixture
def first(one_postgres: Database) -> Postgres:
    """A run's target, with a row."""
    one = opened(one_postgres, OLD)
    one.checkpoints.claim(owner("first"))
    one.write(batch(put({"pk": "a", "made": "old"}, 1)))
    return one


@pytest.fixture
def command(one_postgres: Database) -> Postgres:
    return target(one_postgres)


def build(command: Postgres, database: Database) -> Postgres:
    command.prepare([OLD], [NEW], SECOND, noted(0, STARTED))
    two = target(database, SECOND)
    two.checkpoints.claim(owner("second"))
    two.open([NEW], 1024)
    two.write(batch(put({"pk": "a", "made": "new"}, 1)))
    return two


@pytest.fixture
def second(first: Postgres, command: Postgres, one_postgres: Database) -> Postgres:
    """The same of the generation that is built beside the first."""
    return build(command, one_postgres)


def made(database: Database, table: str = "contract") -> list[str]:
    return [row["made"] for row in rows(database, table)]


def entry(command: Postgres) -> int:
    """The revision of the rebuild's entry; 0 if there is none."""
    return next((e.revision for e in command.checkpoints.read().entries if e.kind == "rebuild"), 0)


def test_the_exchange_is_undone_by_a_rollback_and_neither_run_writes_on(
    first: Postgres, second: Postgres, command: Postgres, one_postgres: Database
) -> None:
    command.exchange(switch())
    assert (made(one_postgres), made(one_postgres, "contract_old")) == (["new"], ["old"])
    for one in (first, second):
        with pytest.raises(Fenced):
            one.write(batch(put({"pk": "b", "made": "late"}, 2)))
    command.exchange(rollback())
    assert (made(one_postgres), made(one_postgres, "contract_new")) == (["old"], ["new"])
    with pytest.raises(Fenced):
        command.exchange(switch())  # as if nothing had happened in between


def test_a_run_that_starts_with_the_names_of_before_the_exchange_is_refused(
    second: Postgres, command: Postgres, one_postgres: Database
) -> None:
    command.exchange(switch())
    late = target(one_postgres, SECOND)
    late.checkpoints.claim(owner("late"))
    with pytest.raises(ConfigError, match="is written by the pipeline contract@new"):
        target(one_postgres, FIRST).epoch([OLD])
    assert late.epoch([NEW]) is None  # the table of that name is gone


def test_a_run_that_has_claimed_the_old_copy_does_not_bring_it_back_once_it_was_removed(
    first: Postgres, second: Postgres, command: Postgres, one_postgres: Database
) -> None:
    command.exchange(switch())
    first.checkpoints.claim(owner("claimed before the removal"))
    finished(command)
    with pytest.raises(Fenced):
        first.open([replace(OLD, stored_as="contract_old")], 1024)
    assert target(one_postgres).epoch([replace(OLD, stored_as="contract_old")]) is None


@pytest.mark.parametrize("step", ["write", "replace", "remove"])
def test_a_command_that_was_opened_before_the_exchange_writes_nothing_after_it(
    step: str, second: Postgres, command: Postgres, one_postgres: Database
) -> None:
    """Commands own no pipeline, so the exchange cannot fence them off as it does with runs."""
    beside = target(one_postgres, FIRST)
    beside.open([OLD], 1024)
    command.exchange(switch())
    writes = batch(put({"pk": "a", "made": "wrong"}, 1))
    (write,) = writes.parts[0].writes
    acts: Mapping[str, Callable[[], object]] = {
        "write": lambda: beside.write(batch(put({"pk": "b", "made": "wrong"}, 9))),
        "replace": lambda: beside.replace(OLD, [write]),  # type: ignore[list-item]
        "remove": lambda: beside.remove(OLD, [write]),  # type: ignore[list-item]
    }
    with pytest.raises(Fenced):
        acts[step]()
    assert made(one_postgres) == ["new"]


class Killed(BaseException):
    """Like kill -9: nothing of ours runs afterwards, and the server ends the transaction."""


def killed_at_each_step(
    one: Postgres, act: Callable[[], object], check: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> int:
    """Do it, killed before its first statement, before its second, and so on, until it is done; returns how often."""
    execute = psycopg.Connection.execute
    kills = 0
    while True:
        left = kills
        with one._session.connection():
            pass  # connected already: only the step's own statements count

        def counting(self: Any, *how: Any, **more: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return execute(self, *how, **more)

        with monkeypatch.context() as patched:
            patched.setattr(psycopg.Connection, "execute", counting)
            try:
                act()
            except Killed:
                one._session.close()
            else:
                return kills
        check()
        kills += 1


def test_each_step_killed_anywhere_has_not_happened_and_can_be_repeated(
    first: Postgres, command: Postgres, one_postgres: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(one_postgres, "CREATE INDEX made_at ON public.contract (made); GRANT SELECT ON public.contract TO PUBLIC")
    run(one_postgres, "CREATE VIEW public.seen AS SELECT pk, made FROM public.contract")

    def unchanged(revision: int, *tables: str) -> Callable[[], None]:
        def check() -> None:
            assert entry(command) == revision
            found = {name for name in ("contract", "contract_new", "contract_old") if one_postgres_has(name)}
            assert found == set(tables)
            assert made(one_postgres) == made(one_postgres, "seen")

        return check

    def one_postgres_has(table: str) -> bool:
        with one_postgres.connect() as client:
            return client.execute("SELECT to_regclass(%s) IS NOT NULL", (f"public.{table}",)).fetchone() == (True,)

    def steps(act: Callable[[], object], check: Callable[[], None]) -> None:
        assert killed_at_each_step(command, act, check, monkeypatch) > 3

    steps(lambda: command.prepare([OLD], [NEW], SECOND, noted(0, STARTED)), unchanged(0, "contract"))
    steps(lambda: command.discard([NEW], SECOND, noted(1, None)), unchanged(1, "contract", "contract_new"))
    build(command, one_postgres)
    steps(lambda: command.exchange(switch()), unchanged(1, "contract", "contract_new"))
    steps(lambda: command.exchange(rollback()), unchanged(2, "contract", "contract_old"))
    steps(lambda: command.exchange(switch(3)), unchanged(3, "contract", "contract_new"))
    steps(lambda: finished(command, 4), unchanged(4, "contract", "contract_old"))
    unchanged(0, "contract")()
    assert made(one_postgres, "seen") == ["new"]


def test_after_the_finish_the_second_pipeline_has_the_firsts_name_and_no_earlier_run_writes(
    first: Postgres, second: Postgres, command: Postgres, one_postgres: Database
) -> None:
    command.exchange(switch())
    resumed = target(one_postgres, FIRST), target(one_postgres, SECOND)
    for one, table in zip(resumed, (replace(OLD, stored_as="contract_old"), replace(NEW, stored_as="")), strict=True):
        one.checkpoints.claim(owner("resumed"))
        one.open([table], 1024)
    finished(command)
    assert command.checkpoints.pipelines() == ["contract"]
    for one in (first, second, *resumed):
        with pytest.raises(Fenced):
            one.write(batch(put({"pk": "b", "made": "late"}, 2)))
    later = target(one_postgres)
    later.checkpoints.claim(owner("later"))
    plain = replace(NEW, stored_as="")
    assert later.epoch([plain]) == 1024
    later.open([plain], 1024)
    later.write(batch(put({"pk": "b", "made": "new"}, 2)))
    assert made(one_postgres) == ["new", "new"]


WAITING = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ 'checkpoints')"


@pytest.mark.parametrize("end", ["finish", "cancel", "cancel before any run"])
def test_a_run_that_claims_as_the_rebuild_ends_waits_for_it_and_leaves_nothing(
    end: str, first: Postgres, command: Postgres, one_postgres: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    if end == "cancel before any run":
        command.prepare([OLD], [NEW], SECOND, noted(0, STARTED))
    else:
        build(command, one_postgres)
    if end == "finish":
        command.exchange(switch())
    late = target(one_postgres, SECOND)
    with ThreadPoolExecutor() as pool:
        claims: list[Future[object]] = []

        def claimed_after(act: Callable[..., None]) -> Callable[..., None]:
            def both(*how: Any) -> None:
                act(*how)
                claims.append(pool.submit(late.checkpoints.claim, owner("late")))
                until(one_postgres, WAITING)

            return both

        last = "succeed" if end == "finish" else "forget"  # before the transaction ends
        monkeypatch.setattr(generations, last, claimed_after(getattr(generations, last)))
        finished(command) if end == "finish" else command.discard([NEW], SECOND, noted(1, None))
        (claim,) = claims
        with pytest.raises(Fenced, match="the rebuild has ended while the run started"):
            claim.result()
    assert command.checkpoints.pipelines() == [FIRST]
    with pytest.raises(Fenced):
        late.checkpoints.claim(owner("later"))
    assert command.checkpoints.pipelines() == [FIRST]


def test_a_run_that_claims_just_before_the_rebuild_ends_is_fenced_off_and_leaves_nothing(
    second: Postgres, command: Postgres, one_postgres: Database
) -> None:
    command.exchange(switch())
    late = target(one_postgres, SECOND)
    late.checkpoints.claim(owner("late"))
    late.open([replace(NEW, stored_as="")], 1024)
    finished(command)
    assert command.checkpoints.pipelines() == [FIRST]
    with pytest.raises(Fenced):
        late.write(batch(put({"pk": "b", "made": "late"}, 2)))


def test_only_tables_that_the_rebuild_made_are_dropped(
    second: Postgres, command: Postgres, one_postgres: Database
) -> None:
    run(one_postgres, "ALTER TABLE public.contract_new RENAME TO mine; CREATE TABLE public.contract_new (x int)")
    with pytest.raises(ConfigError, match=r'"contract_new" is not of the pipeline contract@new, as its note says'):
        command.discard([NEW], SECOND, noted(1, None))
    assert entry(command) == 1


def test_grants_triggers_views_and_the_names_of_indexes_go_with_the_live_table(
    first: Postgres, command: Postgres, one_postgres: Database
) -> None:
    for statement in (
        "CREATE VIEW public.seen WITH (security_barrier = true) AS SELECT pk, made FROM public.contract",
        "CREATE VIEW public.above AS SELECT made FROM public.seen",
        "CREATE UNIQUE INDEX one_each ON public.contract (pk, made) WHERE made <> 'x'",
        "CREATE TABLE public.fired (made text)",
        """CREATE FUNCTION public.fire() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN INSERT INTO public.fired VALUES (NEW.made); RETURN NEW; END'""",
        "CREATE TRIGGER tell AFTER INSERT ON public.contract FOR EACH ROW EXECUTE FUNCTION public.fire()",
        "GRANT SELECT ON public.contract TO pg_monitor WITH GRANT OPTION",
        "GRANT UPDATE (made) ON public.contract TO PUBLIC",
        "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT DELETE ON TABLES TO PUBLIC",
    ):
        run(one_postgres, statement)
    grants = access(one_postgres)
    second = build(command, one_postgres)
    assert rows(one_postgres, "fired") == []  # while it is built
    indexes = "SELECT indexname::text FROM pg_indexes WHERE tablename = 'contract' ORDER BY 1"
    with one_postgres.connect() as client:
        names = client.execute(indexes.encode()).fetchall()
        command.exchange(switch())
        assert client.execute(indexes.encode()).fetchall() == names == [("contract_pkey",), ("one_each",)]
        assert client.execute("SELECT reloptions FROM pg_class WHERE relname = 'seen'").fetchone() == (
            ["security_barrier=true"],
        )
    assert (made(one_postgres, "seen"), made(one_postgres, "above")) == (["new"], ["new"])
    assert access(one_postgres) == grants
    for pipeline, table, kind in ((FIRST, OLD, "contract_old"), (SECOND, NEW, "")):
        again = target(one_postgres, pipeline)
        again.checkpoints.claim(owner("again"))
        again.open([replace(table, stored_as=kind)], 1024)
        again.write(batch(put({"pk": "b", "made": pipeline}, 2)))
    assert made(one_postgres, "fired") == [SECOND]
    command.exchange(rollback())
    assert sorted(made(one_postgres, "above")) == [FIRST, "old"]
    assert access(one_postgres) == grants
    del second


def test_the_replica_identity_goes_with_the_live_table(
    second: Postgres, command: Postgres, one_postgres: Database
) -> None:
    def identity() -> object:
        with one_postgres.connect() as client:
            return client.execute("SELECT relreplident FROM pg_class WHERE relname = 'contract'").fetchone()

    run(one_postgres, "ALTER TABLE public.contract REPLICA IDENTITY FULL")
    full = identity()
    command.exchange(switch())
    assert identity() == full
    run(one_postgres, "ALTER TABLE public.contract REPLICA IDENTITY DEFAULT")
    default = identity()
    command.exchange(rollback())
    assert identity() == default != full


def test_the_owner_goes_with_the_live_table_so_that_its_members_and_views_read_on(
    first: Postgres, command: Postgres, one_postgres: Database
) -> None:
    def read(what: str) -> list[Any]:
        with one_postgres.connect() as client:
            client.execute("SET ROLE app")
            return client.execute(f"SELECT made FROM public.{what}".encode()).fetchall()  # noqa: S608

    for role in ("app", "other"):
        run(one_postgres, f"CREATE ROLE {role}; GRANT USAGE, CREATE ON SCHEMA public TO {role}")
    try:
        run(one_postgres, "ALTER TABLE public.contract OWNER TO app")
        run(one_postgres, "CREATE VIEW public.seen AS SELECT pk, made FROM public.contract")
        run(one_postgres, "ALTER VIEW public.seen OWNER TO app")
        build(command, one_postgres)
        command.exchange(switch())
        assert (read("contract"), read("seen")) == ([("new",)], [("new",)])
        command.exchange(rollback())
        assert (read("contract"), read("seen")) == ([("old",)], [("old",)])
        run(one_postgres, "ALTER TABLE public.contract_new OWNER TO other")  # as one that an earlier version made
        command.exchange(switch(3))
        assert (read("contract"), read("seen")) == ([("new",)], [("new",)])
    finally:
        run(one_postgres, "DROP OWNED BY app, other CASCADE; DROP ROLE app; DROP ROLE other")


def test_a_column_that_only_one_of_the_tables_has_keeps_its_own_grants(
    command: Postgres, one_postgres: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys.modules[__name__], "OLD", Table("contract", PK, {"columns": {"made": "text", "gone": "text"}})
    )
    opened(one_postgres, OLD).checkpoints.claim(owner("first"))
    run(one_postgres, "GRANT SELECT (pk, made, gone) ON public.contract TO pg_monitor")
    before = [grant for grant in access(one_postgres) if grant[0]]
    assert {column for column, *_ in before} == {"gone", "made", "pk"}
    build(command, one_postgres)
    run(one_postgres, "GRANT SELECT (made, more) ON public.contract_new TO pg_monitor, pg_read_all_stats")
    command.exchange(switch())
    with one_postgres.connect() as client:
        query = """
        SELECT column_name::text, grantee::text FROM information_schema.column_privileges
        WHERE table_name = 'contract' AND grantee LIKE 'pg%' ORDER BY 1, 2"""
        granted = client.execute(query).fetchall()
    both = [("more", "pg_monitor"), ("more", "pg_read_all_stats")]
    assert granted == [("made", "pg_monitor"), *both, ("pk", "pg_monitor")]
    command.exchange(rollback())
    assert [grant for grant in access(one_postgres) if grant[0]] == before


def access(database: Database) -> Sequence[tuple[Any, ...]]:
    query = """
    SELECT '', (pg_catalog.aclexplode(relacl)).* FROM pg_catalog.pg_class WHERE relname = 'contract' UNION ALL
    SELECT attname, (pg_catalog.aclexplode(attacl)).* FROM pg_catalog.pg_attribute
    WHERE attrelid = 'public.contract'::regclass ORDER BY 1, 3, 4"""
    with database.connect() as client:
        return client.execute(query).fetchall()


BOUND = {
    "the foreign key about of public.notes": "CREATE TABLE public.notes (pk text CONSTRAINT about REFERENCES contract)",
    "the materialized view public.kept": "CREATE MATERIALIZED VIEW public.kept AS SELECT pk FROM public.contract",
    "the function public.of(public.contract)": """
    CREATE FUNCTION public.of(public.contract) RETURNS int LANGUAGE sql AS 'SELECT 1'""",
    "the table public.whole, which has a column of its row type": "CREATE TABLE public.whole (c public.contract)",
    "row level security": "ALTER TABLE public.contract ENABLE ROW LEVEL SECURITY",
    "the policy own of public.notes": """
    CREATE TABLE public.notes (pk text);
    CREATE POLICY own ON public.notes USING (EXISTS (SELECT FROM public.contract c WHERE c.pk = notes.pk))""",
    "the rule gone of public.seen": """
    CREATE VIEW public.seen AS SELECT pk FROM public.contract;
    CREATE RULE gone AS ON DELETE TO public.seen DO INSTEAD DELETE FROM public.contract""",
    "the publication changes": "CREATE PUBLICATION changes FOR TABLE public.contract",
    "the publication all_of_it": "CREATE PUBLICATION all_of_it FOR TABLES IN SCHEMA public",
    "the replica identity, the index public.by_pk": """
    CREATE UNIQUE INDEX by_pk ON public.contract (pk);
    ALTER TABLE public.contract REPLICA IDENTITY USING INDEX by_pk""",
}


@pytest.mark.parametrize("what", BOUND)
def test_what_would_stay_with_the_old_table_is_refused_by_name(
    what: str, second: Postgres, command: Postgres, one_postgres: Database
) -> None:
    run(one_postgres, BOUND[what])
    sentence = (
        f'"public"."contract" cannot be exchanged because of {what}, which would stay with the old table: drop it, and '
        "create it again after the switch"
    )
    other = replace(NEW, stored_as="contract_newer")
    assert sentence in command.rebuild_problems([OLD], [other])
    with pytest.raises(ConfigError) as refused:
        command.exchange(switch())
    assert sentence in refused.value.problems
    assert (entry(command), made(one_postgres)) == (1, ["old"])


def test_a_child_of_another_table_is_refused(second: Postgres, command: Postgres, one_postgres: Database) -> None:
    run(
        one_postgres,
        'CREATE TABLE public.all_of_them (pk text COLLATE "C" NOT NULL); '
        "ALTER TABLE public.contract INHERIT public.all_of_them",
    )
    with pytest.raises(
        ConfigError, match=r"it is a partition or child of (public\.)?all_of_them, whose readers would keep"
    ):
        command.exchange(switch())
    assert made(one_postgres) == ["old"]


def test_a_privilege_that_was_passed_on_keeps_nobody_from_going_back(
    second: Postgres, command: Postgres, one_postgres: Database
) -> None:
    run(
        one_postgres,
        "GRANT SELECT ON public.contract TO pg_monitor WITH GRANT OPTION; SET ROLE pg_monitor; "
        "GRANT SELECT ON public.contract TO pg_read_all_stats; RESET ROLE",
    )
    granted = {(grantee, privilege) for _, _, grantee, privilege, _ in access(one_postgres)}
    for n, exchange in enumerate((switch, rollback, switch), 1):
        command.exchange(exchange(n))
        assert {(grantee, privilege) for _, _, grantee, privilege, _ in access(one_postgres)} == granted


@pytest.mark.parametrize("marking", ["old", "new"])
def test_the_column_of_deleted_rows_is_no_reason_against_an_exchange(
    marking: str, command: Postgres, one_postgres: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules[__name__]
    name = marking.upper()
    table: Table = getattr(module, name)
    monkeypatch.setattr(module, name, replace(table, options={**table.options, "deletes": "mark"}))
    one = opened(one_postgres, OLD)
    one.checkpoints.claim(owner("first"))
    one.write(batch(put({"pk": "a", "made": "old"}, 1)))
    build(command, one_postgres)
    command.exchange(switch())
    assert made(one_postgres) == ["new"]
    command.exchange(rollback())
    assert made(one_postgres) == ["old"]


@pytest.mark.usefixtures("second")
def test_what_has_the_name_that_the_live_table_would_get_is_refused_at_the_start_and_at_the_switch(
    command: Postgres, one_postgres: Database
) -> None:
    run(one_postgres, "CREATE VIEW public.contract_old AS SELECT 1 AS x")
    problem = '"public"."contract_old" exists already, and the live table would get that name; rename it or drop it'
    retired, newer = replace(OLD, stored_as="contract_old"), replace(NEW, stored_as="contract_newer")
    assert command.rebuild_problems([OLD], [newer], [retired]) == [problem]
    with pytest.raises(ConfigError) as refused:
        command.exchange(switch())
    assert (list(refused.value.problems), made(one_postgres)) == ([problem], ["old"])


def test_names_that_exist_or_are_too_long_are_refused_before_anything_is_made(
    second: Postgres, command: Postgres, one_postgres: Database
) -> None:
    assert command.rebuild_problems([OLD], [NEW]) == [
        '"public"."contract_new" exists already, and a rebuild would create it; rename it or drop it'
    ]
    long = "t" * 60
    with pytest.raises(ConfigError, match="63; choose a shorter one"):
        command.rebuild_problems([Table(long, PK)], [Table(long, PK, {}, f"{long}_new")])


def test_a_view_that_does_not_fit_the_new_table_keeps_the_old_one_live(
    first: Postgres, command: Postgres, one_postgres: Database
) -> None:
    run(one_postgres, "CREATE VIEW public.seen AS SELECT pk, made FROM public.contract")
    narrow = Table("contract", PK, {"columns": {"more": "text"}}, "contract_new")
    command.prepare([OLD], [narrow], SECOND, noted(0, STARTED))
    with pytest.raises(ConfigError) as refused:
        command.exchange(switch())
    assert str(refused.value) == (
        'the view "public"."seen" does not fit the new tables, so nothing was changed: column "made" does not exist. '
        "Drop it, and create it again after the switch"
    )
    assert made(one_postgres, "seen") == ["old"]


def test_columns_that_people_added_must_be_in_the_new_table(
    second: Postgres, command: Postgres, one_postgres: Database
) -> None:
    run(one_postgres, "ALTER TABLE public.contract ADD COLUMN note text")
    with pytest.raises(ConfigError) as refused:
        command.exchange(switch())
    assert str(refused.value) == (
        '"public"."contract" has a column note that is not in the config, and "public"."contract_new" lacks it: add it '
        "there (it is text), or drop it"
    )
    run(one_postgres, "ALTER TABLE public.contract_new ADD COLUMN note text")
    command.exchange(switch())
    assert made(one_postgres) == ["new"]


def test_what_the_new_table_lacks_is_told_at_the_start(
    first: Postgres, command: Postgres, one_postgres: Database
) -> None:
    run(one_postgres, "CREATE INDEX made_at ON public.contract (made)")
    run(one_postgres, "ALTER TABLE public.contract ADD CONSTRAINT known CHECK (made <> '')")
    narrow = Table("contract", PK, {"columns": {"more": "text"}}, "contract_new")
    assert command.prepare([OLD], [narrow], SECOND, noted(0, STARTED)) == [
        '"public"."contract_new" lacks the index made_at: column "made" does not exist',
        '"public"."contract_new" lacks the constraint known; add it if you need it',
    ]


def test_a_vacuum_is_waited_for_while_readers_and_runs_go_on(
    first: Postgres, second: Postgres, command: Postgres, one_postgres: Database
) -> None:
    """An automatic one gives way after a second; nothing else may wait for us until then."""
    with one_postgres.connect() as vacuum, ThreadPoolExecutor(1) as threads:
        vacuum.execute("BEGIN; LOCK TABLE public.contract_new IN SHARE UPDATE EXCLUSIVE MODE")
        exchange = threads.submit(command.exchange, switch())
        until(one_postgres, "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        first.write(batch(put({"pk": "b", "made": "old"}, 2)))
        assert made(one_postgres) == ["old", "old"]
        vacuum.execute("COMMIT")
        exchange.result(30)
    assert made(one_postgres) == ["new"]


def test_readers_that_hold_the_table_are_not_waited_for_long(
    second: Postgres, command: Postgres, one_postgres: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generations, "LONGEST_WAIT", 20)
    with one_postgres.connect() as reader, reader.transaction():
        assert reader.execute("SELECT made FROM public.contract").fetchall() == [("old",)]
        with pytest.raises(TablesBusy, match="hold the tables"):
            command.exchange(switch())
        assert reader.execute("SELECT made FROM public.contract").fetchall() == [("old",)]
    command.exchange(switch())
    assert made(one_postgres) == ["new"]


@pytest.mark.parametrize("step", ["finish", "cancel"])
def test_a_table_that_readers_hold_is_removed_between_their_transactions_while_runs_write_on(
    step: str, first: Postgres, second: Postgres, command: Postgres, one_postgres: Database
) -> None:
    if step == "finish":
        command.exchange(switch())
        live = target(one_postgres, SECOND)
        live.checkpoints.claim(owner("again"))
        live.open([replace(NEW, stored_as="")], 1024)
    else:
        live = first
    written: list[Future[object]] = []

    def remove() -> None:
        finished(command) if step == "finish" else command.discard([NEW], SECOND, noted(1, None))

    with one_postgres.connect() as reader, ThreadPoolExecutor() as pool:
        reader.autocommit = False
        reader.execute(f"SELECT FROM public.contract_{'old' if step == 'finish' else 'new'}".encode())

        def pause(_: float) -> None:
            assert written[-1].result(timeout=10) is not None  # it was not kept waiting for the reader
            if len(written) < 3:
                write()
            else:
                reader.rollback()

        def write() -> None:
            later = batch(put({"pk": f"b{len(written)}", "made": "later"}, 2))
            written.append(pool.submit(live.write, later))

        write()
        exchanged(remove, pause)
    assert (entry(command), len(written), made(one_postgres).count("later")) == (0, 3, 3)


def test_tombstones_go_with_their_table(second: Postgres, command: Postgres, one_postgres: Database) -> None:
    insert = 'INSERT INTO replicator.tombstones VALUES (\'"public"."contract{}"\', \'["{}"]\', 7)'
    run(one_postgres, insert.format("", "old"))
    run(one_postgres, insert.format("_new", "new"))

    def labels() -> list[tuple[Any, ...]]:
        with one_postgres.connect() as client:
            return client.execute("SELECT target, id FROM replicator.tombstones ORDER BY 2").fetchall()

    before = labels()
    command.exchange(switch())
    assert labels() == [('"public"."contract"', '["new"]'), ('"public"."contract_old"', '["old"]')]
    command.exchange(rollback())
    assert labels() == before
