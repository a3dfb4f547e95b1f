"""Responses of servers, proxies and login pages, from a small HTTP server with canned responses."""

from __future__ import annotations

import base64
import hmac
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from connectors.search import bulk
from connectors.search.conflicts import STRIKES
from connectors.search.errors import ResponseLost
from connectors.search.target import SearchTarget
from connectors.search.walk import WALK_PIECE
from replicator.batch import Outcome
from replicator.errors import ConfigError, NotAuthenticated, NotPermitted, TransientError, Unfinished
from replicator.target.contract import Table
from replicator.target.verification import CursorExpired, Walked
from replicator.testing.contract.kit import PK, at, batch, put, remove
from replicator.version import FIRST_EPOCH
from tests.connectors.dynamodb.dynamodb_kit import late_after
from tests.connectors.search.search_engine import asked_for
from tests.connectors.search.search_kit import client

Told = tuple[int, Mapping[str, str], bytes]
TABLE = Table("contract", PK)
ELASTICSEARCH = {"x-elastic-product": "Elasticsearch"}


def said(status: int, body: object = None, **headers: str) -> Told:
    if isinstance(body, bytes):
        return status, {"content-type": "text/html", **headers}, body
    return status, {"content-type": "application/json", **headers}, json.dumps(body).encode()


@dataclass
class Server:
    """Behaves like an empty cluster, except for ``answers``, by prefix of "METHOD /path"."""

    port: int = 0
    answers: dict[str, Told] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)
    requests: list[tuple[str, Mapping[str, str], bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, asked: str, headers: Mapping[str, str], body: bytes) -> Told:
        self.requests.append((asked, headers, body))
        for beginning, told in self.answers.items():
            if asked.startswith(beginning):
                return told
        status, given, usual = self._usual(asked, body)
        return status, given, json.dumps(asked_for(json.loads(usual), asked)).encode() if status == 200 else usual

    def _usual(self, asked: str, body: bytes) -> Told:
        if "/_bulk" in asked:
            actions = [json.loads(line) for line in body.splitlines() if line.startswith((b'{"index"', b'{"delete"'))]
            versions: dict[str, int] = {}
            return said(200, {"items": [_guarded(action, versions) for action in actions]})
        if asked.startswith("PUT /contract-1/_mapping"):
            self.made["contract-1"]["mappings"] |= json.loads(body)
        elif asked.startswith("PUT /contract-1"):
            self.made["contract-1"] = json.loads(body)
        if asked.startswith("GET /contract"):
            if not self.made:
                return said(404, {"error": {"type": "index_not_found_exception", "reason": "no such index"}})
            return said(200, self.made)
        if "_has_privileges" in asked:
            return said(405, {"error": "no"})
        return said(200, {"acknowledged": True})


def _guarded(action: Mapping[str, Any], versions: dict[str, int]) -> Mapping[str, Any]:
    ((kind, told),) = action.items()
    known = versions.get(told["_id"], -1)
    if told["version"] < known or (told["version"] == known and told["version_type"] == "external"):
        return {kind: {"status": 409, "error": {"type": "version_conflict_engine_exception"}}}
    versions[told["_id"]] = told["version"]
    return {kind: {"status": 201}}


@pytest.fixture
def server() -> Iterator[Server]:
    yield from served(Server(), lambda http: None)


def served(found: Server, secure: Callable[[ThreadingHTTPServer], None]) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        disable_nagle_algorithm = True  # else the body waits 40 ms for the acknowledgment of the headers
        protocol_version = "HTTP/1.1"

        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, given, answer = found.answer(f"{self.command} {self.path}", headers, body)
            self.send_response(status)
            for name, value in {**given, "content-length": str(len(answer))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do_PUT = do  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients hang up, which is expected
    secure(http)
    found.port = http.server_address[1]
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield found
    http.shutdown()
    http.server_close()
    thread.join(10)


def opened(server: Server, **options: Any) -> SearchTarget:
    found = client("elasticsearch", url=server.url, **options)
    found.open([TABLE], FIRST_EPOCH)
    return found


def test_a_login_that_worked_before_is_waited_for_and_one_that_never_did_is_not(server: Server) -> None:
    refused = said(401, {"error": {"type": "security_exception", "reason": "x"}})
    one = opened(server)
    server.answers["POST /_bulk"] = server.answers["POST /contract"] = refused
    with pytest.raises(TransientError, match=r"refuses the login\. It was accepted before, so the password or"):
        one.write(batch(put({"pk": "a"}, 1)))
    server.answers.clear()
    assert one.write(batch(put({"pk": "a"}, 1))) == Outcome()

    server.answers["GET /"] = refused
    with pytest.raises(NotAuthenticated, match=r"refuses the login\. Correct target"):
        opened(server)


HTML = b"<html><body>Welcome</body></html>"
UNRECOVERED = {"type": "cluster_block_exception", "reason": "blocked by: state not recovered"}
UNAUTHORIZED = {"type": "security_exception", "reason": "action [indices:data/write/bulk] is unauthorized for user [u]"}


@pytest.mark.parametrize(
    ("told", "error", "text"),
    [
        (said(401, {"error": {"type": "security_exception", "reason": "x"}}), TransientError, "It was accepted before"),
        (said(403, {"message": "The security token included in the request is invalid."}), NotAuthenticated,
         "refuses the login: The security token included in the request is invalid. Correct the AWS credentials"),
        (said(403, {"error": UNAUTHORIZED}), NotPermitted, "[u]. Grant it to the login of the target"),
        (said(403, {"Message": "User: x is not authorized"}), NotPermitted, "User: x is not authorized"),
        (said(403, HTML), NotPermitted, "does not permit writing documents"),
        (said(404, HTML), ConfigError, "responded with a web page (status 404), which does not come from"),
        (said(200, HTML), ConfigError, "responded with a web page (status 200)"),
        (said(302, HTML, location="/login"), ConfigError, "responded with a web page (status 302)"),
        (said(400, HTML), ConfigError, "responded with a web page (status 400)"),
        (said(429, {"error": {"type": "es_rejected_execution_exception"}}), TransientError, "is overloaded"),
        (said(429, HTML), TransientError, "is overloaded"),
        (said(502, HTML), TransientError, "failed while writing documents: a web page (status 502)"),
        (said(503, {"error": {"type": "master_not_discovered_exception"}}), TransientError, "has no master"),
        (said(503, {"error": UNRECOVERED}), TransientError, "the cluster is not ready"),
        (said(500, {"error": {"type": "odd"}}), TransientError, "fails to store documents: odd"),
        (said(200, {"items": []}), TransientError, "returned an incomplete response to a bulk request"),
        (said(200, b""), TransientError, "empty response while sending a bulk request (status 200): it was truncated"),
        (said(404, {"error": {"type": "index_not_found_exception", "reason": "x"}}), ConfigError, "is gone"),
    ],
)  # fmt: skip
def test_error_for_a_failed_request(server: Server, told: Told, error: type[Exception], text: str) -> None:
    found = opened(server)
    server.answers["POST /contract-1-Replicator/_bulk"] = told
    with pytest.raises(error) as e:
        found.write(batch(put({"pk": "a"}, 1)))
    assert str(e.value).startswith(f"Elasticsearch at 127.0.0.1:{server.port}")
    assert text in str(e.value)
    del server.answers["POST /contract-1-Replicator/_bulk"]
    assert found.write(batch(put({"pk": "a"}, 1))) == Outcome()


ODD_ITEMS: list[object] = [None, 5, [5], [{}], [{"index": 5}], [{"index": {}}]]


@pytest.mark.parametrize(
    ("told", "in_doubt"),
    [
        *((said(status, HTML), False) for status in (429, 401)),
        (said(400, {"__type": "x#ThrottlingException", "message": "slowly"}), False),
        *((said(status, HTML), True) for status in (408, 500, 502, 503)),
        (said(408, {"error": {"type": "timeout"}}), True),
        (said(200, {"items": [{"index": {"status": 408, "error": {"type": "timeout"}}}]}), True),
        *((said(200, {"items": items}), True) for items in ODD_ITEMS),
        (said(200, b""), True),
    ],
)
def test_a_request_that_failed_halfway_is_in_doubt(server: Server, told: Told, in_doubt: bool) -> None:
    found = opened(server)
    server.answers["POST /contract-1-Replicator/_bulk"] = told
    with pytest.raises((TransientError, NotPermitted)):
        found.write(batch(put({"pk": "a"}, 1)))
    assert bool(found.in_doubt) is in_doubt


@pytest.mark.parametrize("cause", [None, 5, {"reason": None}, {"reason": 5}])
def test_a_malformed_cause_is_left_out_of_the_reason(server: Server, cause: object) -> None:
    found = opened(server)
    error = {"type": "mapper_parsing_exception", "reason": None, "caused_by": cause}
    items = [{"index": {"status": 400, "error": error}}]
    server.answers["POST /contract-1-Replicator/_bulk"] = said(200, {"items": items})
    (rejection,) = found.write(batch(put({"pk": "a"}, 1))).rejections
    assert "None" not in rejection.reason


@pytest.mark.parametrize("answer", [said(413, b""), said(400, {"error": {"type": "x_content_parse_exception"}})])
def test_a_rejected_request_is_halved_down_to_the_document_to_blame(server: Server, answer: Told) -> None:
    class Picky(Server):
        def answer(self, asked: str, headers: Mapping[str, str], body: bytes) -> Told:
            return answer if b'"culprit"' in body else super().answer(asked, headers, body)

    picky = Picky(server.port)
    server.answer = picky.answer  # type: ignore[method-assign]
    found = opened(server)
    writes = [put({"pk": pk}, 1) for pk in ("a", "b", "culprit", "c", "d", "e")]
    (rejection,) = found.write(batch(*writes)).rejections
    assert rejection.write is writes[2]
    assert "bytes" in rejection.reason or "x_content_parse_exception" in rejection.reason
    bodies = [body for asked, _, body in picky.requests if "/_bulk" in asked]
    stored = [json.loads(line) for body in bodies for line in body.splitlines() if b'"document"' in line]
    assert {document["replicator"]["partition"] for document in stored} == {"a", "b", "c", "d", "e"}


def test_only_unfinished_documents_are_sent_again(server: Server) -> None:
    found = opened(server)
    busy = {"status": 429, "error": {"type": "es_rejected_execution_exception"}}
    items = [{"index": {"status": 201}}, {"index": busy}, {"delete": {"status": 404}}]
    server.answers["POST /contract-1-Replicator/_bulk"] = said(200, {"items": items})
    whole = batch(put({"pk": "a"}, 1), put({"pk": "b"}, 1), remove("c", 1))
    with pytest.raises(TransientError, match="the rest will be sent again"):
        found.write(whole)
    server.answers.clear()
    server.requests.clear()
    assert found.write(whole) == Outcome()
    ((_, _, body),) = server.requests
    assert [json.loads(line)["index"]["_id"] for line in body.splitlines()[::2]] == ["b"]


FAULTY = {"index": {"status": 500, "error": {"type": "null_pointer_exception"}}}


@pytest.mark.parametrize("passes", [True, False])
def test_a_document_the_engine_always_fails_on_is_refused_if_its_shard_accepts_others(
    server: Server, passes: bool
) -> None:
    class Failing(Server):
        def answer(self, asked: str, headers: Mapping[str, str], body: bytes) -> Told:
            self.requests.append((asked, headers, body))
            lines = [line for line in body.splitlines() if line.startswith((b'{"index"', b'{"delete"'))]
            probing = b"replicator-is-there-room" in body
            stored = {"delete" if probing else "index": {"status": 201}}
            faulty = [b'"culprit"' in line and not (probing and passes) for line in lines]
            return said(200, {"errors": True, "items": [FAULTY if it else stored for it in faulty]})

    found = opened(server)
    failing = Failing(server.port)
    server.answer = failing.answer  # type: ignore[method-assign]
    written = batch(put({"pk": "a"}, 1), put({"pk": "culprit"}, 1))
    for _ in range(STRIKES - 1 if passes else 3 * STRIKES):
        with pytest.raises(TransientError, match="fails to store documents: null_pointer_exception"):
            found.write(written)
    if passes:
        (rejection,) = found.write(written).rejections
        assert rejection.write is written.parts[0].writes[1]
        assert rejection.reason.startswith("the engine fails on this document (an error 500 each time it was sent)")
    probes = [json.loads(body) for _, _, body in failing.requests if b"is-there-room" in body]
    assert {probe["delete"]["routing"] for probe in probes} == {"culprit"}


def test_a_returned_batch_is_sent_again_completely(server: Server) -> None:
    """It comes again in other batches, after older changes that may have undone it."""
    found = opened(server)
    no = {"status": 400, "error": {"type": "document_parsing_exception", "reason": "failed to parse"}}
    items = [{"delete": {"_index": "contract-1", "status": 200}}, {"index": no}]
    server.answers["POST /contract-1-Replicator/_bulk"] = said(200, {"items": items})
    assert [r.write.id for r in found.write(batch(remove("a", 2), put({"pk": "b"}, 2))).rejections] == [("b",)]
    items[0] = {"index": {"_index": "contract-1", "status": 201}}
    server.answers["POST /contract-1-Replicator/_bulk"] = said(200, {"items": items})
    assert found.write(batch(put({"pk": "a"}, 1), put({"pk": "b"}, 2))).rejections
    server.answers.clear()
    server.requests.clear()
    assert found.write(batch(remove("a", 2))) == Outcome()
    assert [next(iter(json.loads(body.splitlines()[0]))) for _, _, body in server.requests] == ["delete"]


def test_a_shard_that_does_not_respond_fails_a_sweep(server: Server) -> None:
    found = opened(server)
    server.answers["POST /contract-1/_search"] = said(503, {"error": {"type": "search_phase_execution_exception"}})
    with pytest.raises(TransientError):
        found.sweep(TABLE, 1, [])
    assert "allow_partial_search_results=false" in server.requests[-1][0]


def swept_hits(*ids: str) -> Told:
    hits = [{"_id": id, "_version": 1, "_source": {"replicator": {"partition": id}}} for id in ids]
    return said(200, {"hits": {"hits": hits}})


FOREIGN = [None, "text", 7, [], [{"version": 1}], {"deleted": "true"}, {"deleted_at": 5}]
"""What an adopted index may hold in place of replicator's own fields: a mapping accepts most of these."""


@pytest.mark.parametrize("field", FOREIGN)
@pytest.mark.parametrize("deletes", ["apply", "mark"])
def test_a_document_of_another_tool_is_swept_whatever_it_has_in_place_of_own_fields(
    server: Server, field: object, deletes: str
) -> None:
    of = Table("contract", PK, {"deletes": deletes})
    found = client("elasticsearch", url=server.url)
    found.open([of], FIRST_EPOCH)
    source = {"replicator": field, "title": "kept"}
    server.answers["POST /contract-1/_search"] = said(
        200, {"hits": {"hits": [{"_id": "a", "_version": 1, "_source": {"replicator": field}}]}}
    )
    server.answers["POST /contract-1/_mget"] = said(200, {"docs": [{"found": True, "_version": 1, "_source": source}]})
    assert found.sweep(of, 5, []) == 1
    stored = json.loads(server.requests[-1][2].splitlines()[1])
    own = stored["replicator"]
    assert own["version"] == 5
    assert stored.get("title") == ("kept" if deletes == "mark" else None)
    assert isinstance(own["deleted_at"], str) if deletes == "mark" else own["deleted"] is True


def test_a_walk_asks_for_the_documents_that_replicator_wrote_behind_those_of_the_cursor(server: Server) -> None:
    found = opened(server)
    hits = [{"sort": [f"{n:05}"]} for n in range(WALK_PIECE)]
    server.answers["POST /contract-1/_search"] = said(200, {"hits": {"hits": hits}})
    first = found.walk(TABLE, None)
    assert (len(first.ids), first.ids[7]) == (WALK_PIECE, ("00007",))
    server.answers["POST /contract-1/_search"] = said(200, {"hits": {"hits": [{"sort": ["x"]}]}})
    assert found.walk(TABLE, first.cursor) == Walked([("x",)], None)
    server.answers["POST /contract-1/_search"] = said(200, {})
    assert found.walk(TABLE, '["x"]') == Walked([], None)
    asked = [json.loads(body) for _, _, body in server.requests if b"_none_" in body and b"random_score" not in body]
    assert [one.get("search_after") for one in asked] == [None, [f"{WALK_PIECE - 1:05}"], ["x"]]
    ours = [{"exists": {"field": f"replicator.{name}"}} for name in ("version", "partition")]
    assert all(one["query"]["bool"]["filter"][1:] == ours for one in asked)


def test_a_walk_with_a_cursor_of_an_earlier_release_starts_over(server: Server) -> None:
    with pytest.raises(CursorExpired):
        opened(server).walk(TABLE, "1 FGluY2x1ZGVfY29udGV4dF91dWlk")


def test_a_walk_that_a_shard_fails_to_answer_is_tried_again(server: Server) -> None:
    found = opened(server)
    server.answers["POST /contract-1/_search"] = said(200, {"_shards": {"failed": 1}, "hits": {"hits": []}})
    with pytest.raises(TransientError):
        found.walk(TABLE, '["x"]')


def test_a_sweep_waits_while_a_search_still_shows_removed_documents(server: Server) -> None:
    """A lagging replica shard does this."""
    found = opened(server)
    server.answers["POST /contract-1/_search"] = swept_hits("a", "b")
    server.answers["POST /contract-1/_mget"] = said(200, {"docs": [{"found": True, "_version": 5}] * 2})
    assert found.sweep(TABLE, 5, []) == 2
    for _ in range(3):
        with pytest.raises(TransientError, match=r"a search in contract-1 still shows 2 document\(s\) that were swept"):
            found.sweep(TABLE, 5, [])
    server.answers["POST /contract-1/_search"] = swept_hits("c")
    assert found.sweep(TABLE, 5, []) == 1


def test_an_epoch_overwritten_by_an_earlier_one_is_restored(server: Server) -> None:
    """A run that was suspended while it opened the index, and was replaced, does this. Others' metadata stays."""
    found = client("elasticsearch", url=server.url)
    found.open([TABLE], FIRST_EPOCH + 2)
    meta = server.made["contract-1"]["mappings"]["_meta"] = json.loads(
        json.dumps({**server.made["contract-1"]["mappings"]["_meta"], "team": "orders"})
    )
    right = json.loads(json.dumps(meta))
    meta["replicator"]["epoch"] = FIRST_EPOCH + 1
    assert found.epoch([TABLE]) == FIRST_EPOCH + 1
    found._watch.now = lambda: float("inf")
    found.write(batch(put({"pk": "a"}, 1)))
    assert server.made["contract-1"]["mappings"]["_meta"] == right
    assert found.epoch([TABLE]) == FIRST_EPOCH + 2


@pytest.mark.parametrize("later", [0, 1])
def test_the_watch_changes_nothing_unless_the_epoch_is_lower(server: Server, later: int) -> None:
    found = opened(server)
    meta = server.made["contract-1"]["mappings"]["_meta"] = json.loads(
        json.dumps({**server.made["contract-1"]["mappings"]["_meta"], "team": "orders"})
    )
    meta["replicator"]["epoch"] = FIRST_EPOCH + later
    found._watch.now = lambda: float("inf")
    server.requests.clear()
    found.write(batch(put({"pk": "a"}, 1)))
    assert not [asked for asked, _, _ in server.requests if asked.startswith("PUT")]


@pytest.mark.parametrize("how", ["sweep", "purge"])
def test_the_end_of_a_sweep_or_purge_is_confirmed_by_an_aggregation(server: Server, how: str) -> None:
    """A search pipeline may hide documents."""
    found = opened(server)
    piece = partial(found.sweep, TABLE, 5, []) if how == "sweep" else partial(found.purge, TABLE, 5)
    oldest = {"oldest": {"value": 4.0}}
    server.answers["POST /contract-1/_search?allow_partial_search_results=false&request_cache"] = said(
        200, {"aggregations": {"of": oldest if how == "sweep" else {"buckets": [oldest]}}}
    )
    with pytest.raises(TransientError, match=r"do not find all (live|deleted) documents that must be removed"):
        piece()
    oldest["oldest"]["value"] = 5.0
    server.answers.clear()
    assert piece() == 0


def test_a_sweep_respects_the_result_window_and_skips_the_search_pipeline(server: Server) -> None:
    found = opened(server)
    server.made["contract-1"]["settings"] = {"index": {"max_result_window": "7", "search": {"default_pipeline": "p"}}}
    assert found.sweep(TABLE, 5, []) == 0
    (search, confirmed) = [(asked, json.loads(body)) for asked, _, body in server.requests if "_search" in asked][-2:]
    assert search[1]["size"] == 7
    assert "search_pipeline=_none" in search[0]
    assert "search_pipeline=_none" in confirmed[0]


def test_an_index_that_refuses_tombstones_ends_the_run_instead_of_an_endless_sweep(server: Server) -> None:
    found = opened(server)
    hits = [{"_id": "a", "_version": 1, "_source": {"replicator": {"partition": "a"}}}]
    server.answers["POST /contract-1/_search"] = said(200, {"hits": {"hits": hits}})
    refused = {"status": 400, "error": {"type": "illegal_argument_exception", "reason": "a pipeline's own"}}
    server.answers["POST /contract-1-Replicator/_bulk"] = said(200, {"items": [{"index": refused}]})
    with pytest.raises(ConfigError, match=r"contract-1 takes no tombstones \(the engine refuses the document"):
        found.sweep(TABLE, 5, [])


def test_an_index_created_by_two_runs_at_once_is_inspected_again(server: Server) -> None:
    server.answers["PUT /contract-1"] = said(400, {"error": {"type": "resource_already_exists_exception"}})
    with pytest.raises(TransientError, match="another process created the index at the same time"):
        opened(server)


# login


CLOUD = {"cloud_id": "name:" + base64.b64encode(b"example.com$uuid$kibana").decode()}


@pytest.mark.parametrize(
    ("options", "header"),
    [
        ({"api_key": "a2V5"}, "ApiKey a2V5"),
        (
            {"username": "elastic", "password": "pass:é"},
            f"Basic {base64.b64encode('elastic:pass:é'.encode()).decode()}",
        ),
    ],
)
def test_login_headers(server: Server, options: Mapping[str, str], header: str) -> None:
    opened(server, **options)
    assert {headers["authorization"] for _, headers, _ in server.requests} == {header}


def test_a_cloud_id_is_an_address() -> None:
    found = client("elasticsearch", **CLOUD)
    assert found.server == "Elasticsearch at uuid.example.com:443"


def test_missing_privileges_are_named(server: Server) -> None:
    granted = {
        "contract-1": {"manage": False, "read": True, "index": True, "delete": False},
        "contract": {"manage": True},
    }
    told = {"username": "writer", "has_all_requested": False, "index": granted}
    server.answers["POST /_security/user/_has_privileges"] = said(200, told)
    (problem,) = client("elasticsearch", url=server.url).check([TABLE])
    assert problem.endswith("the login writer lacks manage, delete on contract-1")


def test_an_index_that_may_not_be_created_is_not_permitted(server: Server) -> None:
    reason = "action [indices:admin/create] is unauthorized for user [u]"
    server.answers["PUT /contract-1"] = said(403, {"error": {"type": "security_exception", "reason": reason}})
    with pytest.raises(NotPermitted, match="is unauthorized for user"):
        opened(server)


def test_a_server_that_ignores_versions_is_refused(server: Server) -> None:
    """A service may accept the parameters and ignore them."""
    server.answers["POST /contract-1-Replicator/_bulk"] = said(200, {"items": [{"index": {"status": 200}}] * 4})
    with pytest.raises(ConfigError, match="does not compare versions as replicator needs"):
        opened(server)


def test_requests_to_amazon_are_signed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ACCESS_KEY_ID", "AKID"), ("SECRET_ACCESS_KEY", "secret"), ("SESSION_TOKEN", "token")):
        monkeypatch.setenv(f"AWS_{name}", value)
    found = client("opensearch", url=server.url, aws={"region": "eu-west-1"})
    found.open([TABLE], FIRST_EPOCH)
    found.write(batch(put({"pk": "é"}, 1)))
    assert len(server.requests) > 3
    for asked, headers, body in server.requests:
        assert headers["x-amz-security-token"] == "token"
        assert headers["authorization"] == signature(asked, headers, body, "eu-west-1", "es")


@pytest.fixture
def no_aws_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without AWS credentials or a region."""
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))


@pytest.mark.usefixtures("no_aws_config")
def test_amazon_opensearch_needs_a_region_and_credentials(server: Server) -> None:
    with pytest.raises(ConfigError, match=r"target\.aws\.region is missing"):
        client("opensearch", url=server.url, aws={})
    with pytest.raises(NotPermitted, match="no AWS credentials"):
        client("opensearch", url=server.url, aws={"region": "eu-west-1"}).check([TABLE])
    with pytest.raises(ConfigError, match=r"target\.aws\.profile: .*nobody"):
        client("opensearch", url=server.url, aws={"region": "eu-west-1", "profile": "nobody"})


def signature(asked: str, headers: Mapping[str, str], body: bytes, region: str, service: str) -> str:
    """The authorization header, computed from the received request as AWS does."""
    method, target = asked.split(" ")
    path, _, query = target.partition("?")
    signed = headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0]
    canonical = "\n".join(
        [
            method,
            path.replace("%", "%25"),
            "&".join(sorted(f"{n}={v.replace(',', '%2C').replace('*', '%2A')}" for n, _, v in _pairs(query))),
            *(f"{name}:{headers[name]}" for name in signed.split(";")),
            "",
            signed,
            sha256(body).hexdigest(),
        ]
    )
    stamp = headers["x-amz-date"]
    scope = f"{stamp[:8]}/{region}/{service}/aws4_request"
    key = b"AWS4secret"
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{sha256(canonical.encode()).hexdigest()}"
    made = hmac.digest(key, text.encode(), "sha256").hex()
    return f"AWS4-HMAC-SHA256 Credential=AKID/{scope}, SignedHeaders={signed}, Signature={made}"


def _pairs(query: str) -> list[tuple[str, str, str]]:
    return [pair.partition("=") for pair in query.split("&") if pair]


def test_a_run_ends_once_another_pipeline_has_taken_the_index_over(server: Server) -> None:
    """With ``adopt: true``. It must not note itself there again: the other one's next start would be refused."""
    target = client("elasticsearch", url=server.url)
    target.open([TABLE], FIRST_EPOCH + 3)
    server.made["contract-1"] = json.loads(json.dumps(server.made["contract-1"]))
    server.made["contract-1"]["mappings"]["_meta"]["replicator"] |= {"pipeline": "other", "epoch": FIRST_EPOCH}
    noted = json.loads(json.dumps(server.made["contract-1"]))
    target._watch.now = lambda: float("inf")
    with pytest.raises(ConfigError, match="pipeline other has taken over the index contract-1: stop this one for good"):
        target.write(batch(put({"pk": "a"}, 1)))
    assert server.made["contract-1"] == noted


def test_a_request_that_was_never_sent_is_not_in_doubt(server: Server) -> None:
    found = client("elasticsearch", url="http://127.0.0.1:1")
    # the server went away since
    found._writing.layouts, found._encoders = (there := opened(server))._writing.layouts, there._encoders
    with pytest.raises(TransientError, match=r"127\.0\.0\.1:1 cannot be reached: .*refused"):
        found.write(batch(put({"pk": "a"}, 1)))
    assert not found.in_doubt


def test_results_of_an_earlier_attempt_count_when_the_rest_is_stored(server: Server) -> None:
    found, written = opened(server), batch(put({"pk": "a"}, 1), put({"pk": "b"}, 1))
    conflict = {"index": {"status": 409, "error": {"type": "version_conflict_engine_exception"}}}
    busy = {"index": {"status": 429, "error": {"type": "es_rejected_execution_exception"}}}
    server.answers["POST /contract-1/_mget"] = said(200, {"docs": [{"found": True, "_version": at(2)}]})
    server.answers["POST /contract-1-Replicator/_bulk"] = said(200, {"errors": True, "items": [conflict, busy]})
    with pytest.raises(TransientError, match="is overloaded"):
        found.write(written)
    server.answers["POST /contract-1-Replicator/_bulk"] = said(
        200, {"errors": False, "items": [{"index": {"status": 201}}]}
    )
    assert found.write(written).superseded == {written.parts[0].source: 1}
    server.answers["POST /contract-1-Replicator/_bulk"] = said(
        200, {"errors": False, "items": [{"index": {"status": 200}}] * 2}
    )
    assert found.write(written) == Outcome()  # nothing is remembered


# TLS


def test_a_server_without_tls_is_a_config_error(server: Server) -> None:
    (problem,) = client("elasticsearch", url=f"https://127.0.0.1:{server.port}").check([TABLE])
    assert problem.endswith("does not speak TLS on that port; should target.url use http?")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("NOT TESTED: there is no openssl to make a certificate with")
    found = tmp_path / "pair.pem"
    subprocess.run(
        [program, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(found),
         "-out", str(tmp_path / "certificate.pem")], check=True, capture_output=True,
    )  # fmt: skip
    found.write_text(found.read_text() + (tmp_path / "certificate.pem").read_text())
    return found


@pytest.fixture
def secure(certificate: Path) -> Iterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def wrap(http: ThreadingHTTPServer) -> None:
        http.socket = context.wrap_socket(http.socket, server_side=True, do_handshake_on_connect=False)

    yield from served(Server(), wrap)


def test_an_untrusted_certificate_is_refused(secure: Server) -> None:
    (problem,) = client("elasticsearch", url=f"https://127.0.0.1:{secure.port}").check([TABLE])
    assert "has a certificate that is not trusted" in problem
    assert problem.endswith("set target.ca_certs to its certificate authority")


def test_with_its_authority_configured_the_same_server_is_trusted(secure: Server, tmp_path: Path) -> None:
    trusted = {"url": f"https://127.0.0.1:{secure.port}", "ca_certs": str(tmp_path / "certificate.pem")}
    assert list(client("elasticsearch", **trusted).check([TABLE])) == []


def test_a_slow_batch_is_sent_in_stretches(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a replaced run could still be writing after the next one has purged its tombstones."""
    monkeypatch.setattr(bulk, "is_late", late_after(1))
    target, whole = opened(server, bulk_documents=2, in_flight=1), batch(*(put({"pk": f"{n}"}, 1) for n in range(5)))
    before = bulks(server)
    for sent in (1, 2):
        with pytest.raises(Unfinished, match="the batch takes long; confirming that no other run took over"):
            target.write(whole)
        assert bulks(server) - before == sent
    assert target.write(whole) == Outcome()
    assert bulks(server) - before == 3


def bulks(server: Server) -> int:
    return sum("/_bulk" in asked for asked, _, _ in server.requests)


def test_a_damaged_tls_response_is_in_doubt(certificate: Path, tmp_path: Path) -> None:
    """The server has received the request: a TLS failure does not mean that nothing arrived."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def damaged() -> None:
            with context.wrap_socket(listener.accept()[0], server_side=True) as connection:
                received.append(connection.recv(65536))
                os.write(connection.fileno(), b"\x17\x03\x03\x00\x20" + b"x" * 32)
                listener.accept()[0].close()

        thread = threading.Thread(target=damaged)
        thread.start()
        url, trusted = f"https://127.0.0.1:{listener.getsockname()[1]}", str(tmp_path / "certificate.pem")
        target = client("elasticsearch", url=url, ca_certs=trusted)
        with pytest.raises(ResponseLost, match="TLS failed"):
            target._connection.request("POST", "/contract-1-Replicator/_bulk", b"{}")
        socket.create_connection(listener.getsockname()).close()
        thread.join(10)
    assert received[0].startswith(b"POST /contract-1-Replicator/_bulk")
    target.close()
