"""No command shows a secret of the config or a value of an item, whatever goes wrong, in any of its output formats.

``canary`` scans everything that commands print and handlers log, here as in all other tests. The first tests check it.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from replicator.engine import run as running
from replicator.testing.servers.postgres import PostgresServer
from tests.cli.command_line import Shell, World, serving
from tests.end_to_end.pipeline import Run
from tests.security import canary, plugin
from tests.security.canary import SECRET, VALUE
from tests.servers.postgres_fixtures import database

# the scanner


def test_output_of_processes_is_scanned(tmp_path: Path) -> None:
    Shell().run(SECRET)
    with Run([VALUE], {}, tmp_path / "log") as run:
        run.process.wait()
    first, second = canary.taken()
    assert first.startswith(f"replicator {SECRET} shows {SECRET}: …")
    assert second.startswith(f"replicator {VALUE} shows {VALUE}: …")


def test_output_of_commands_in_this_process_is_scanned(world: World) -> None:
    world.call(SECRET)
    assert len(canary.taken()) == 1


def test_log_records_are_scanned_with_fields_and_traceback() -> None:
    logging.getLogger("replicator.here").warning("%s", "waits", extra={"reason": SECRET})
    logging.getLogger("library").error("an item: %r", {"id": VALUE})
    try:
        raise ValueError(VALUE)
    except ValueError:
        logging.getLogger("replicator.here").exception("bug")
    assert len(canary.taken()) == 6  # in two forms each


@pytest.mark.parametrize("shown", [SECRET, "dXNlcjpzM2NyM3RrNG40cjEz", SECRET.encode().hex(), f"a{VALUE}b"])
def test_an_encoded_secret_is_recognized_and_fails_its_test(shown: str) -> None:
    canary.look(f"something {shown}", "a caller")
    with pytest.raises(pytest.fail.Exception, match=r"^a caller shows"):
        plugin.nothing_was_shown()
    plugin.nothing_was_shown()


def test_values_may_be_shown_on_request_and_secrets_never() -> None:
    canary.look_at_command(f"{VALUE}", ["preview", "orders.yaml"])
    canary.look_at_command(f"{VALUE}", ["parked", "show", "--all", "--show-values"])
    assert canary.taken() == []
    canary.look_at_command(f"{SECRET}", ["preview", "orders.yaml"])
    canary.look_at_command(f"{VALUE}", ["parked", "list"])
    assert len(canary.taken()) == 2


def test_the_canaries_stand_in_for_secrets_and_values(world: World) -> None:
    world.db.create_table("orders")
    world.db.put("orders", {"id": "1"})
    assert VALUE in world.call("preview", world.config)[1]
    assert f":{SECRET}" in Path(world.config).read_text()
    assert world.environ["AWS_SECRET_ACCESS_KEY"] == world.environ["AWS_SESSION_TOKEN"] == SECRET


# secrets


class Repeating(BaseHTTPRequestHandler):
    """A server that rejects everything and quotes the request in its response, on further lines as AWS does."""

    disable_nagle_algorithm = True  # else the body waits 40 ms for the acknowledgment of the headers
    status, code, page = 400, "ValidationException", False

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        asked = f"{self.headers}\n{self.rfile.read(length).decode(errors='replace')}"
        login = self.headers.get("Authorization", "").rpartition(" ")[2]
        words = f"'{login}' is not a valid key=value pair in Authorization header\n{asked}"
        error = {"type": self.code, "reason": words}
        body = orjson.dumps({"__type": f"com.amazon#{self.code}", "message": f"refused\n{asked}", "error": error})
        if self.page:
            body = f"<html>{asked}</html>".encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_POST  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def repeating(**how: Any) -> Iterator[str]:
    """The address of such a server, without http://."""
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Repeating,), how)) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


REFUSALS: Mapping[str, Mapping[str, Any]] = {
    "invalid": {},
    "unsigned": {"code": "InvalidSignatureException"},
    "denied": {"status": 403, "code": "AccessDeniedException"},
    "login": {"status": 401, "code": "security_exception"},
    "forbidden": {"status": 403, "code": "security_exception"},
    "broken": {"status": 500, "code": "InternalServerError"},
    "page": {"status": 403, "page": True},
}
AWS = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": SECRET}
CLOSED = "127.0.0.1:9"


@dataclass(frozen=True)
class Trouble:
    """An invalid part of a config, with secrets that would be shown if anything showed them."""

    name: str
    section: str
    change: Mapping[str, Any]
    environ: Mapping[str, str] = field(default_factory=dict)
    server: Mapping[str, Any] = field(default_factory=dict)
    """How ``Repeating`` responds."""


LOGIN = f"me:{SECRET}"
SEARCH = {"table": "orders", "url": "http://REPEATING"}
BASIC, KEY = {"username": "me", "password": SECRET}, {"api_key": SECRET}
DYNAMODB = {"region": "eu-west-1", "endpoint_url": "http://REPEATING"}
ROLE = {"role_arn": "arn:aws:iam::123456789012:role/r", "external_id": SECRET, "endpoint_url": f"http://{CLOSED}"}


def _postgres(url: str) -> dict[str, Any]:
    return {"type": "postgres", "url": url, "table": "orders"}


def _sources() -> Iterator[Trouble]:
    yield Trouble("closed", "source", {"endpoint_url": f"http://{CLOSED}"})
    yield Trouble("no TLS", "source", {"endpoint_url": "https://REPEATING"})
    yield Trouble("login in it", "source", {"endpoint_url": f"http://{LOGIN}@{CLOSED}"})
    yield Trouble("no profile", "source", {"profile": "nobody"})
    yield Trouble("external id alone", "source", {"external_id": SECRET})
    yield Trouble("role", "source", ROLE, {"AWS_ENDPOINT_URL_STS": "http://REPEATING"})
    yield Trouble("role, closed", "source", ROLE, {"AWS_ENDPOINT_URL_STS": f"http://{LOGIN}@{CLOSED}"})
    proxy = {"HTTP_PROXY": f"http://{LOGIN}@{CLOSED}", "NO_PROXY": ""}
    yield Trouble("proxy", "source", {"endpoint_url": "http://localhost:9", "insecure": True}, proxy)
    of_environ = {"AWS_ENDPOINT_URL": f"http://{LOGIN}@{CLOSED}"}
    yield Trouble("endpoint of the environment", "source", {"endpoint_url": None}, of_environ)
    profile = {"profile": "p", "endpoint_url": "http://REPEATING"}
    yield Trouble("profile's keys", "source", profile, {"AWS_SHARED_CREDENTIALS_FILE": "PROFILE"})


def _targets() -> Iterator[Trouble]:
    yield Trouble("closed", "target", _postgres(f"postgresql://{LOGIN}@{CLOSED}/shop"))
    yield Trouble("no such role", "target", _postgres(f"postgresql://{LOGIN}@POSTGRES/DATABASE"))
    yield Trouble("no such database", "target", _postgres(f"postgresql://postgres:{SECRET}@POSTGRES/nowhere"))
    yield Trouble("no TLS", "target", _postgres(f"postgresql://{LOGIN}@POSTGRES/DATABASE?sslmode=require"))
    yield Trouble("far", "target", _postgres(f"postgresql://{LOGIN}@far.example/shop"))
    yield Trouble("split", "target", _postgres(f"postgresql://me:a@{SECRET}/b@{CLOSED}/shop"))
    yield Trouble("no address", "target", _postgres(f"postgres//{LOGIN}"))
    yield Trouble("variable", "target", _postgres("${URL}x y"), {"URL": f"postgresql://{LOGIN}@{CLOSED}/shop"})
    yield Trouble("file", "target", _postgres("${file:secret}@"))
    yield Trouble("tag", "target", _postgres("TAG"))
    closed, no_tls = f"postgresql://{LOGIN}@{CLOSED}/shop", f"postgresql://{LOGIN}@POSTGRES/d?sslmode=require"
    yield Trouble("closed", "checkpoints", {"type": "postgres", "url": closed})
    yield Trouble("no TLS", "checkpoints", {"type": "postgres", "url": no_tls})
    yield Trouble("cloud id", "target", {"type": "elasticsearch", "cloud_id": SECRET, "table": "orders"})
    beyond = {"AWS_ENDPOINT_URL_DYNAMODB": f"http://{LOGIN}@localhost:9", "HTTP_PROXY": f"http://{LOGIN}@{CLOSED}"}
    table = {"type": "dynamodb", "region": "eu-west-1", "table": "orders", "insecure": True}
    yield Trouble("table behind a proxy", "target", table, {**beyond, "NO_PROXY": "127.0.0.1"})
    away = {**SEARCH, "url": f"http://{CLOSED}"}
    yield Trouble("search, closed", "target", {"type": "elasticsearch", **away, **KEY})
    yield Trouble("search, no TLS", "target", {"type": "opensearch", **SEARCH, **BASIC, "url": "https://REPEATING"})
    yield Trouble("search, login in it", "target", {"type": "opensearch", **away, "url": f"http://{LOGIN}@{CLOSED}"})
    behind = {"type": "elasticsearch", **SEARCH, **KEY, "url": "https://search.invalid"}
    yield Trouble("search, proxy refuses", "target", {**behind, "proxy": f"http://{LOGIN}@REPEATING"})
    yield Trouble("search, proxy's address", "target", {**behind, "proxy": f"http//{LOGIN}@{CLOSED}"})


def _refused(name: str, server: Mapping[str, Any]) -> Iterator[Trouble]:
    """Each request that a server may reject, rejected in one way."""
    signed = {"type": "opensearch", **SEARCH, "aws": {"region": "eu-west-1"}}
    changes: Mapping[str, Mapping[str, Any]] = {
        "basic": {"type": "opensearch", **SEARCH, **BASIC},
        "key": {"type": "elasticsearch", **SEARCH, **KEY},
        "signed": signed,
        "table": {"type": "dynamodb", "table": "orders", **DYNAMODB},
    }
    for place, change in changes.items():
        yield Trouble(f"{place} {name}", "target", change, server=server)
    yield Trouble(name, "source", {"endpoint_url": "http://REPEATING"}, server=server)
    yield Trouble(name, "checkpoints", {"type": "dynamodb", "table": "kept", **DYNAMODB}, server=server)


TROUBLES = [*_sources(), *_targets(), *(t for refusal in REFUSALS.items() for t in _refused(*refusal))]
ALWAYS = (["check", "--json"], ["run", "--human"])
OTHERS = (
    ["check", "--human", "--create"],
    ["preview", "--human"],
    ["status", "--human"],
    ["status", "--json"],
    ["parked", "list", "--human"],
    ["parked", "retry", "--all", "--json"],
    ["resync", "--json"],
    ["resync", "--now", "--json"],
)


def commands(trouble: Trouble) -> Iterator[list[str]]:
    """The two that cover everything, and one of the others; all of them with ``make prove``."""
    yield from ALWAYS
    yield from OTHERS if os.environ.get("REPLICATOR_PROVE") else [OTHERS[TROUBLES.index(trouble) % len(OTHERS)]]


@dataclass
class Limit:
    seconds: float = 20.0


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Limit]:
    """Runs in this process stop after some seconds, and their changes to logging are undone."""
    limit = Limit()

    def stop(*_: object) -> threading.Event:
        found = threading.Event()
        timer = threading.Timer(limit.seconds, found.set)
        timer.daemon = True
        timer.start()
        return found

    monkeypatch.setattr(sys.modules["replicator.cli.run"], "stop_on_signals", stop)
    monkeypatch.setattr(running, "tune_allocator", lambda: None)
    logger = logging.getLogger("replicator")
    before = (logger.handlers[:], logger.level, logger.propagate)
    yield limit
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, one_postgres_server: PostgresServer) -> Iterator[World]:
    """One world for all cases: none of them gets far enough to leave anything behind."""
    fresh = contextmanager(database)
    with fresh(one_postgres_server) as postgres, serving(tmp_path_factory.mktemp("place"), postgres) as world:
        world.db.create_table("orders")
        world.db.put("orders", {"id": "1"})
        (world.folder / "secret").write_text(f"postgresql://me:{SECRET}@")
        (world.folder / "profile").write_text(_PROFILE)
        yield world


_PROFILE = f"""\
[p]
aws_access_key_id = local
aws_secret_access_key = {SECRET}
aws_session_token = {SECRET}
"""


def placed(text: str, world: World, address: str) -> str:
    """``text`` with the addresses that are only known now."""
    found = text.replace("REPEATING", address).replace("DATABASE", world.postgres.name)
    found = found.replace(f"postgres:{SECRET}@POSTGRES", f"postgres:{world.postgres.server.password}@POSTGRES")
    found = found.replace("POSTGRES", f"127.0.0.1:{world.postgres.server.port}")
    return found.replace("PROFILE", str(world.folder / "profile")).replace("url: TAG", f"url: !{SECRET}")


def written(right: str, trouble: Trouble) -> str:
    """The config ``right`` with the fault in it."""
    config = yaml.safe_load(right)
    config[trouble.section] = {**(config["source"] if trouble.section == "source" else {}), **trouble.change}
    if trouble.section == "checkpoints":
        config["target"] = {"type": "opensearch", "url": f"http://{CLOSED}", "table": "orders", "timeout": 1}
    config["source"] = {name: value for name, value in config["source"].items() if value is not None}
    return yaml.safe_dump(config)


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda t: f"{t.section}: {t.name}")
def test_no_command_shows_a_secret_whatever_is_wrong(place: World, trouble: Trouble, here: Limit) -> None:
    here.seconds = 0.1
    right = Path(place.config).read_text()
    try:
        with repeating(**trouble.server) as address:
            Path(place.config).write_text(placed(written(right, trouble), place, address))
            own = {name: placed(value, place, address) for name, value in trouble.environ.items()}
            world = replace(place, environ={**AWS, "HOME": str(place.folder), **own})
            met = [meets_trouble(world, command) for command in commands(trouble)]
    finally:
        Path(place.config).write_text(right)
    assert any(met[: len(ALWAYS)])


def meets_trouble(world: World, command: list[str]) -> bool:
    """Whether the command reported the fault. ``canary`` checks that it shows nothing."""
    words = [word for word in command if not word.startswith("-")]
    options = [word for word in command if word.startswith("-")]
    code, out, err = world.call(*words, world.config, *options)
    assert "Traceback" not in f"{out}{err}"
    return code != 0 or "waiting" in out


# values

RAISES = {
    "words": "raise ValueError(f'no {value}')",
    "attribute": "raise KeyError(value)",
    "cause": "int(value)",
    "note": "e = ValueError('odd'); e.add_note(value); raise e",
    "group": "raise ExceptionGroup('odd', [ValueError(value)])",
    "itself": "raise type('Odd', (Exception,), {'__str__': lambda self: value})",
    "exit": "raise SystemExit(value)",
    "text": "return value",
    "float": "return {'n': float('nan'), 'text': value}",
    "object": "return {value: {value: object()}}",
}
DECLARED = {
    "twice": "return [Document(id=value, body={}), Document(id=value, body={})]",
    "table": "return [Document(id='a', body={}, table=value)]",
    "body": "return [Document(id='a', body=value)]",
    "generator": "return (int(value) for _ in 'a')",
}


@pytest.mark.parametrize("bodies", [RAISES, DECLARED], ids=["plain", "declared"])
def test_a_hooks_message_about_an_item_is_shown_only_on_request(
    world: World, bodies: Mapping[str, str], here: Limit
) -> None:
    lines = [f"    if item['id'] == '{name}': {body}" for name, body in bodies.items()]
    head = "from replicator import Document, documents\n\n\n" + "@documents\n" * (bodies is DECLARED)
    world.hook("\n".join([f"{head}def hook(item):", "    value = item['canary']", *lines]))
    world.db.create_table("orders")
    are_parked_in_silence(world, bodies)


COLUMNS = ("numeric", "bigint", "boolean", "timestamptz", "bytea", "text[]", "numeric[]")


def test_a_value_that_does_not_fit_its_column_is_not_shown(world: World, here: Limit) -> None:
    world.hook("def hook(item):\n    return {item['id']: item['canary']}\n")
    head, _, _ = Path(world.config).read_text().rpartition("  table: orders")
    columns = ", ".join(f"'{type}': '{type}'" for type in COLUMNS)
    Path(world.config).write_text(f"{head}  tables: {{orders: {{columns: {{{columns}}}}}}}\n")
    world.db.create_table("orders")
    are_parked_in_silence(world, COLUMNS)


TRIGGER = """
CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE 'no %', NEW.document USING ERRCODE = NEW.id, DETAIL = NEW.document, HINT = NEW.document; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON orders FOR EACH ROW WHEN (NEW.id ~ '^[0-9A-Z]{5}$') EXECUTE FUNCTION refuse();
"""
INDICES = """
ALTER TABLE orders ADD CHECK (id <> 'check' OR document->>'canary' IS NULL);
CREATE UNIQUE INDEX ON orders ((document->>'canary')) WHERE id LIKE 'unique%';
CREATE INDEX ON orders (((document->>'canary')::int)) WHERE id = 'function';
"""


def with_rules(world: World, rules: str) -> None:
    """The table as a run creates it, with user additions."""
    world.db.create_table("orders")
    assert caught_up(world, "--human")[0] == 0
    with world.postgres.connect() as client:
        client.execute(rules.encode())


def test_a_value_that_postgres_refuses_is_not_shown(world: World, here: Limit) -> None:
    with_rules(world, TRIGGER + INDICES)
    world.db.put("orders", {"id": "unique0"})
    assert caught_up(world, "--human")[0] == 0
    are_parked_in_silence(world, ("P0001", "22023", "23000", "check", "unique1", "function"))


def test_a_statement_that_fails_over_a_value_does_not_show_it(world: World, here: Limit) -> None:
    with_rules(world, TRIGGER)
    here.seconds = 1.0
    for state in ("42501", "42703", "XX001", "0A000", "ZZ001", "57014"):
        world.db.put("orders", {"id": state})
        code, out, err = caught_up(world, "--json")
        assert code != 0 or "waiting" in out
        assert "Traceback" not in err
        world.call("status", world.config, "--human")
        world.db.delete("orders", {"id": state})


def are_parked_in_silence(world: World, ids: Iterable[str]) -> None:
    """The items are parked, and only their keys are shown unless values are requested."""
    for id in ids:
        world.db.put("orders", {"id": id})
    assert caught_up(world, "--json")[0] == 6
    for view in ("--json", "--human"):
        world.call("check", world.config, view)
        world.call("status", world.config, view)
        world.call("parked", "list", world.config, view)
        world.call("parked", "show", world.config, "--all", view)
        world.call("parked", "retry", world.config, "--all", view)
    parked = world.lines("parked", "list", world.config)
    assert {line["item"] for line in parked} == {f'["{id}"]' for id in ids}
    assert VALUE in world.call("parked", "show", world.config, "--all", "--show-values")[1]


def caught_up(world: World, view: str) -> tuple[int, str, str]:
    return world.call("run", world.config, "--until", "caught-up", view)


LOUD = """
import logging
logging.basicConfig(level=logging.DEBUG)
for name in ("botocore", "botocore.endpoint", "urllib3", "psycopg"):
    logging.getLogger(name).setLevel(logging.DEBUG)

def hook(item):
    return {"n": 1}
"""
BROKEN = """
import connectors.postgres.encode as encode

def broken(self, batch):
    raise RuntimeError(f"a bug that quotes {[dict(w.body) for part in batch.parts for w in part.writes]}")

def hook(item):
    encode.Encoder.encode = broken
    return item
"""


def test_a_hook_that_logs_everything_gets_no_library_records(world: World) -> None:
    world.db.create_table("orders")
    world.db.put("orders", {"id": "1"})
    world.hook(LOUD)
    world.catch_up("--json")


def test_a_bug_shows_its_traceback_without_its_message(world: World) -> None:
    world.db.create_table("orders")
    world.db.put("orders", {"id": "1"})
    world.hook(BROKEN)
    code, _, err = world.shell.run("run", world.config)
    assert code == 1
    assert 'raise RuntimeError(f"a bug that quotes' in err
    assert err.endswith("RuntimeError: (message hidden: it may contain item data; --show-values shows it)\n")
    code, _, err = world.shell.run("--show-values", "run", world.config)
    assert (code, VALUE in err) == (1, True)
