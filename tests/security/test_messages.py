"""No message quotes a secret of the config or a value of an item: one case per way it did, or could."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import psycopg
import pytest
from pydantic import SecretStr

from connectors.postgres.errors import translated
from connectors.postgres.options import PostgresOptions, address
from connectors.search.connection import redacted
from connectors.search.errors import READING, WRITING, Response, failure
from connectors.search.responses import refusal, verdicts
from replicator import log
from replicator.aws.boto import Boto, connect
from replicator.aws.errors import AwsError, without_login
from replicator.aws.errors import failure as aws_failure
from replicator.config import settings
from replicator.errors import ConfigError, NotPermitted, ReplicatorError, TransientError
from replicator.hooks import redaction
from replicator.items.attributes import Malformed
from replicator.items.item import Item
from replicator.options import Access
from tests.config.test_config import RIGHT
from tests.servers.postgres_fixtures import Database

WORD = "kanariavogel"


def refused(folder: Path, old: str, new: str, **environ: str) -> str:
    """The errors for a config with one part replaced."""
    assert old in RIGHT
    (folder / "orders.yaml").write_text(RIGHT.replace(old, new, 1))
    with pytest.raises(ConfigError) as raised:
        settings.load(folder / "orders.yaml", environ)
    return str(raised.value)


PASSWORDS = ["pa@{}", "pa/{}", "{}/pa", "pa@{}/b", "a@b@{}", "1/{}", "pa?{}/x", "a/{}?b", "pa#{}/x", "{}%zz"]


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_password_that_libpq_would_split_is_refused_without_quoting_it(tmp_path: Path, password: str) -> None:
    url = f"postgresql://me:{password.format(WORD)}@127.0.0.1:5432/shop"
    said = refused(tmp_path, "postgresql://me@127.0.0.1:5432/shop", "${URL}", URL=url)
    assert "target.url: " in said
    assert WORD not in said


@pytest.mark.parametrize("url", [f"postgresql://me:{WORD}/shop", f"host=127.0.0.1 port={WORD}"])
def test_a_password_in_place_of_a_port_is_refused_without_quoting_it(tmp_path: Path, url: str) -> None:
    said = refused(tmp_path, "postgresql://me@127.0.0.1:5432/shop", "${URL}", URL=url)
    assert "target.url: is ambiguous" in said
    assert WORD not in said


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:pa%40ss%2Fword@127.0.0.1:5432/shop",
        "postgresql://me:pa:ss?w#rd@127.0.0.1/shop?application_name=a@b",
        "postgresql:///shop?host=/run/postgresql&user=a@b",
        "postgresql://a,b:5433/shop?sslmode=verify-full",
        "host=127.0.0.1 password='a@b/c' dbname=shop",
        "host=@abstract dbname=shop",
    ],
)
def test_unambiguous_addresses_are_accepted(url: str) -> None:
    assert PostgresOptions(url=SecretStr(url)).url.get_secret_value() == url


@pytest.mark.parametrize(
    "url", [f"dbname=postgresql://me:{WORD}@far/shop", f"host=me:{WORD}@far", f"dbname='a password={WORD}'"]
)
def test_a_login_in_a_host_or_database_is_not_shown(url: str) -> None:
    assert WORD not in address(url)
    assert "…" in address(url)


@pytest.mark.parametrize(
    "url", [f"https://me:{WORD}@far", f"https://{WORD}@far", f"https://far/?token={WORD}", f"https://far/#{WORD}"]
)
def test_an_endpoint_must_be_a_plain_address(tmp_path: Path, url: str) -> None:
    said = refused(tmp_path, "region: eu-west-1", f'region: eu-west-1\n  endpoint_url: "{url}"')
    assert said.startswith("orders.yaml:5: source.endpoint_url: must not contain credentials, a query or a fragment")
    assert WORD not in said


YAMLS = [
    f"!{WORD}",
    f"!{WORD} x",
    f"!{WORD}! x",
    f"!{WORD}!x",
    f"&{WORD} &{WORD} x",
    f"*{WORD}",
    f"{{{WORD}",
    f"{{1: {WORD}}}",
    f'"{WORD}',
    f"'{WORD}' {WORD}",
    f"%{WORD}",
    f"@{WORD}",
    f"`{WORD}",
    f"[{WORD}",
    f"{WORD}: {WORD}: x",
    f'"\\x{WORD}"',
    f'"\\q{WORD}"',
    f"|{WORD}",
    f"'${{{WORD}!}}'",
    f"!!{WORD} x",
    f"!<{WORD}> x",
    f"!!binary {WORD}!",
    f"[&{WORD} a, &{WORD} b]",
]


@pytest.mark.parametrize("written", YAMLS)
def test_a_secret_that_yaml_parses_as_another_type_is_not_quoted(tmp_path: Path, written: str) -> None:
    said = refused(tmp_path, "postgresql://me@127.0.0.1:5432/shop", written)
    assert "orders.yaml" in said
    assert WORD not in said


@pytest.mark.parametrize("name", ["7", "1.5", "true", "2024-01-01"])
def test_a_number_in_braces_may_be_a_secret_too(tmp_path: Path, name: str) -> None:
    said = refused(tmp_path, "url: postgresql://me@127.0.0.1:5432/shop", f"url: {{{name}}}")
    assert said == "orders.yaml:7: target.url: the key on line 7 is not a string in YAML; put it in quotes"


def test_a_hook_that_fails_on_the_environment_does_not_quote_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from replicator.hooks.loading import load

    monkeypatch.setenv("SHOP_SECRET", WORD)
    (tmp_path / "hooks.py").write_text("import os\nx = int(os.environ['SHOP_SECRET'])\n")
    with pytest.raises(ConfigError, match=r"imported: ValueError \(message hidden: it may contain a secret") as raised:
        load("hooks.py:hook", tmp_path)
    assert WORD not in str(raised.value)


# Postgres

TRIGGER = """
CREATE TABLE t (id int);
CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'value {word}' USING ERRCODE = '{state}', DETAIL = 'value {word}'; END $$;
CREATE TRIGGER g BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f();
"""


@pytest.mark.parametrize(
    "state", ["08P01", "40002", "42501", "42703", "3F000", "58030", "57999", "XX000", "0A000", "ZZ999"]
)
def test_the_message_of_a_trigger_is_hidden_whatever_its_sqlstate(one_postgres: Database, state: str) -> None:
    with one_postgres.connect() as connection:
        connection.execute(TRIGGER.format(word=WORD, state=state).encode())
        with pytest.raises(psycopg.Error) as raised:
            connection.execute("INSERT INTO t VALUES (1)")
    found = translated(raised.value, "S", "target.url")
    assert WORD in str(raised.value)
    assert isinstance(found, ReplicatorError)
    assert WORD not in str(found)


def test_an_unknown_sqlstate_is_named_without_the_servers_message(one_postgres: Database) -> None:
    with one_postgres.connect() as connection:
        connection.execute("CREATE TABLE t (id text)")
        connection.execute("CREATE VIEW v AS SELECT id FROM t WHERE id = 'a' WITH CHECK OPTION")
        with pytest.raises(psycopg.Error) as raised:
            connection.execute("INSERT INTO v VALUES (%s)", [WORD])
    assert WORD in str(raised.value)
    assert str(translated(raised.value, "S", "target.url")) == (
        "Postgres at S refuses a statement: WithCheckOptionViolation (SQLSTATE 44000). Its own log says more"
    )


def test_the_servers_message_about_our_own_statement_is_shown(one_postgres: Database) -> None:
    with one_postgres.connect() as connection, pytest.raises(psycopg.Error) as raised:
        connection.execute("SELECT FROM nowhere")
    assert 'relation "nowhere" does not exist' in str(translated(raised.value, "S", "target.url"))


# search engines


def test_a_value_that_imitates_an_engine_message_is_not_quoted() -> None:
    reason = (
        "failed to parse field [n] of type [long] in document with id '1'. Preview of field's value: "
        f"'dynamic introduction of [{WORD}] within [x] is not allowed'"
    )
    assert refusal("document_parsing_exception", reason).startswith("the field n is of type long and cannot hold")
    for words in ("no write index is defined", "number of documents in the index", "pipeline with id [x]"):
        error = {
            "type": "document_parsing_exception",
            "reason": f"failed to parse: Preview of field's value: '{words}{WORD}'",
        }
        (found,) = verdicts([{"index": {"status": 400, "error": error}}], "S", "i")
        assert (found.kind, WORD in found.reason) == ("refused", False)


@pytest.mark.parametrize("doing", [WRITING, READING])
def test_an_engine_that_cannot_read_a_request_with_documents_does_not_quote_it(doing: str) -> None:
    body = f'{{"error": {{"type": "x_content_parse_exception", "reason": "[1:2] unexpected {WORD}"}}}}'.encode()
    assert (
        str(failure(Response(400, body), "S", doing)) == f"S returned an error while {doing}: x_content_parse_exception"
    )
    assert WORD in str(
        failure(Response(400, body), "S", "creating the index (needs create_index)")
    )  # the mapping, from the config


@pytest.mark.parametrize(
    "login",
    [
        {"authorization": f"ApiKey {WORD}"},
        {"authorization": f"Basic {WORD}"},
        {"Authorization": "AWS4-HMAC-SHA256 Credential=a", "X-Amz-Security-Token": WORD},
    ],
)
def test_a_refusal_that_echoes_the_login_is_shown_without_it(login: dict[str, str]) -> None:
    said = f"'{WORD}' not a valid key=value pair (missing equal-sign) in Authorization header: 'Basic {WORD}'."
    body = redacted(orjson.dumps({"message": said}), login)
    assert str(failure(Response(403, body), "S", WRITING)) == (
        "S refuses the login: '…' not a valid key=value pair (missing equal-sign) in Authorization header: "
        "'Basic …'. Correct the AWS credentials, or give others (AWS_PROFILE, target.profile, target.role_arn)"
    )


def test_only_the_first_line_of_a_reason_is_shown() -> None:
    body = orjson.dumps({"message": f"The signature does not match.\nx-amz-security-token:{WORD}"})
    assert str(failure(Response(403, body), "S", "x")) == (
        "S refuses the login: The signature does not match. Correct the AWS credentials, or give others "
        "(AWS_PROFILE, target.profile, target.role_arn)"
    )


# DynamoDB and AWS


@pytest.mark.parametrize("operation", ["PutItem", "BatchGetItem", "TransactWriteItems"])
def test_a_validation_message_is_not_repeated_where_items_were_sent(operation: str) -> None:
    words = f"The parameter cannot be converted to a numeric value: {WORD}"
    error = AwsError("ValidationException", words, 400)
    assert WORD not in str(aws_failure(error, operation, "arn:t"))
    assert words in str(aws_failure(error, "DescribeTable", "arn:t"))


def test_an_invalid_number_is_not_quoted() -> None:
    with pytest.raises(Malformed) as raised:
        Item(b'{"n":{"N":"%s"}}' % WORD.encode())["n"]
    assert WORD not in str(raised.value)


def reached(monkeypatch: pytest.MonkeyPatch, **environ: str) -> Boto:
    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": WORD, **environ}.items():
        monkeypatch.setenv(name, value)
    return connect(Access(region="eu-west-1", timeout=1, insecure=True), "source")


@pytest.mark.parametrize(
    "environ",
    [
        {"AWS_ENDPOINT_URL_DYNAMODB": f"http://me:{WORD}@127.0.0.1:9"},
        {"HTTP_PROXY": f"http://me:{WORD}@127.0.0.1:9", "AWS_ENDPOINT_URL_DYNAMODB": "http://localhost.test"},
        {"HTTP_PROXY": f"http://me:{WORD}/x@127.0.0.1:9", "AWS_ENDPOINT_URL_DYNAMODB": "http://localhost.test"},
    ],
)
def test_endpoints_and_proxies_of_the_environment_are_shown_without_their_logins(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    client = reached(monkeypatch, **environ)
    with pytest.raises(AwsError) as raised:
        client.call("DescribeTable", {"TableName": "orders"})
    assert WORD not in str(aws_failure(raised.value, "DescribeTable", "orders"))
    assert WORD not in client.server
    client.close()


def test_an_invalid_endpoint_from_the_environment_is_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^source: an endpoint .* is not a valid URL") as raised:
        reached(monkeypatch, AWS_ENDPOINT_URL_DYNAMODB=f"me:{WORD}@far")
    assert WORD not in str(raised.value)


def test_only_logins_are_removed_from_addresses() -> None:
    assert without_login('to "http://me:pa/s@s@far:80/x" and http://near/') == 'to "http://…@far:80/x" and http://near/'
    assert without_login('to "http://me:a pass phrase@far/" and') == 'to "http://…@far/" and'
    assert without_login('to http://me:it\'s"mine"@far/') == "to http://…@far/"
    assert without_login("me@far is no address") == "me@far is no address"


def test_a_wrong_profile_or_region_is_reported_without_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", WORD)
    for access in (Access(profile="nobody", region="eu-west-1"), Access(region="not a region!")):
        with pytest.raises((ConfigError, NotPermitted, TransientError)) as raised:
            connect(access).call("DescribeTable", {"TableName": "t"})
        assert WORD not in str(raised.value)


# logs and tracebacks


@pytest.fixture
def loud() -> Iterator[None]:
    """Logs everything that the loggers allow."""
    names = [n for n in logging.root.manager.loggerDict if n.partition(".")[0] in log.LIBRARIES]
    levels = {name: logging.getLogger(name).level for name in ["", *names]}
    for name in names:
        logging.getLogger(name).setLevel(logging.NOTSET)
    logging.getLogger().setLevel(logging.DEBUG)
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_libraries_log_no_headers_or_bodies_whatever_the_hook_configures(
    loud: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = reached(monkeypatch, AWS_ENDPOINT_URL_DYNAMODB="http://127.0.0.1:9", AWS_SESSION_TOKEN=WORD)
    ways: tuple[Callable[[], None], ...] = (lambda: None, log.silence_libraries)
    for hush in ways:
        hush()
        caplog.clear()
        with pytest.raises(AwsError):
            client.call("GetItem", {"TableName": "orders", "Key": {"id": {"S": WORD}}})
        assert (WORD in caplog.text) == (hush is not log.silence_libraries)
    for name in ("", "botocore", "botocore.endpoint", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    log.silence_libraries()
    assert not logging.getLogger("botocore.endpoint").isEnabledFor(logging.CRITICAL)
    client.close()


def test_a_bug_in_a_thread_is_shown_without_its_message() -> None:
    code = (
        "import sys, threading; from replicator.hooks import redaction; redaction.install(); "
        "thread = threading.Thread(target=int, args=[sys.argv[1]]); thread.start(); thread.join()"
    )
    done = subprocess.run([sys.executable, "-c", code, WORD], capture_output=True, text=True)
    assert done.stderr.endswith(f"ValueError: {redaction.HIDDEN}\n")
    assert WORD not in done.stderr


def test_a_bug_is_shown_with_its_traceback_and_without_its_message() -> None:
    empty: dict[str, str] = {}
    try:
        empty[f"{WORD[:3]}{WORD[3:]}"]
    except KeyError as e:
        found = redaction.trace(e)
    assert "test_messages.py" in found.stack
    assert found.stack.endswith(f"KeyError: {redaction.HIDDEN}\n")
    assert found.words == f"KeyError: {WORD}"
