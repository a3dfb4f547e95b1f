"""The web server: where it listens, who may ask it, and what it never does."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Iterator

import pytest

from replicator.config.monitoring import Address
from replicator.errors import ConfigError
from replicator.monitoring import server
from replicator.monitoring.server import allowed_hosts, bound, monitor_of, serving
from replicator.testing.servers.programs import free_port
from tests.cli.command_line import World
from tests.monitoring.client import get
from tests.monitoring.phases import HOSTILE, SUBJECT, monitor, stories

PATHS = ("/", "/fragment", "/metrics", "/healthz", "/readyz", "/status.json", "/page.css", "/page.js", "/icon.svg")


@pytest.fixture
def parked() -> Iterator[int]:
    """The port of a run with a hostile key among its parked items."""
    address = Address("127.0.0.1", free_port())
    with serving(monitor(stories()["parked"]), address):
        yield address.port


def test_every_response_has_a_strict_policy_and_is_not_kept(parked: int) -> None:
    for path in (*PATHS, "/nowhere"):
        response = get(parked, path)
        policy = response.headers["content-security-policy"]

        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';"), path
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in response.headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_no_route_changes_anything(parked: int, method: str) -> None:
    assert {get(parked, path, method).status for path in PATHS} == {405}


@pytest.mark.parametrize(
    "path", ["/../secrets", "/pages/page.css", "/page.html", "/docs", "/openapi.json", "//etc/passwd"]
)
def test_nothing_else_is_served(parked: int, path: str) -> None:
    assert get(parked, path).status == 404


def test_another_sites_name_for_this_machine_is_refused(parked: int) -> None:
    """Otherwise a web page could read it through a name that it points to 127.0.0.1."""
    for host in ("evil.example", "evil.example:9464", f"127.0.0.1.evil.example:{parked}"):
        assert get(parked, "/status.json", Host=host).status == 400
    for host in (f"127.0.0.1:{parked}", f"localhost:{parked}", "localhost"):
        assert get(parked, "/status.json", Host=host).status == 200


def test_a_hostile_key_is_text(parked: int) -> None:
    page = get(parked, "/").text

    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert HOSTILE not in page
    assert page.count("<script") == 1, "its own"


def test_only_loopback_checks_names() -> None:
    assert "*" not in allowed_hosts(Address("127.0.0.1", 1))
    assert "*" not in allowed_hosts(Address("::1", 1))
    assert allowed_hosts(Address("0.0.0.0", 1)) == ["*"]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (Address("192.0.2.1", 9464), "monitoring.listen: 192.0.2.1:9464 is not an address of this machine"),
        (Address("no-such-host.invalid", 9464), "monitoring.listen: no-such-host.invalid:9464 cannot be resolved"),
    ],
)
def test_an_address_that_cannot_be_used_is_explained(address: Address, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        bound(address)
    assert words in str(raised.value)


def test_a_port_in_use_is_explained() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(ConfigError, match="is in use by another process, perhaps another run"):
            bound(address)
        assert not server.require_usable(address)  # for check: the pipeline's own run may be up
    assert server.require_usable(address)


def test_a_privileged_port_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refuse)
    for listen in (bound, server.require_usable):
        with pytest.raises(ConfigError, match="use a port above 1023 instead of 80"):
            listen(Address("127.0.0.1", 80))


def test_a_failure_of_the_web_server_does_not_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def run(self, sockets: object) -> None:
            raise RuntimeError("no event loop")

    with socket.create_server(("127.0.0.1", 0)) as listener, caplog.at_level("WARNING", "replicator"):
        logging.getLogger("replicator").propagate = True
        server._serve(Broken(), listener)

    assert [(record.getMessage(), vars(record)["reason"]) for record in caplog.records] == [
        ("monitoring ended", "RuntimeError")
    ]


def test_clients_that_hold_connections_open_hold_no_one_else_up(parked: int) -> None:
    """Half a request each; and the server's thread ends nevertheless."""
    with contextlib.ExitStack() as stack:
        for _ in range(server.MOST_CONNECTIONS // 2):
            held = stack.enter_context(socket.create_connection(("127.0.0.1", parked), timeout=10))
            held.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Endless: ")
        assert get(parked, "/healthz").status == 200
        for _ in range(server.MOST_CONNECTIONS):
            held = stack.enter_context(socket.create_connection(("127.0.0.1", parked), timeout=10))
            held.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Endless: ")
        assert get(parked, "/healthz").status == 503, "too many at once"
    assert _eventually_answers(parked)


def _eventually_answers(port: int) -> bool:
    deadline = time.monotonic() + 30
    while get(port, "/healthz").status != 200:
        assert time.monotonic() < deadline
    return True


def test_a_missing_extra_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as raised:
        monitor_of(SUBJECT)
    assert str(raised.value).startswith("monitoring: needs packages that are not installed (starlette). Install them ")
    assert "pip install '.[web]' in a clone of replicator" in str(raised.value)


@pytest.mark.parametrize(
    ("listen", "words"),
    [
        ("9464", "--listen: must have the form HOST:PORT"),
        ("127.0.0.1:0", "--listen: must have the form HOST:PORT"),
        ("127.0.0.1:70000", "--listen: must have the form HOST:PORT"),
        ("http://127.0.0.1:9464", "--listen: must have the form HOST:PORT"),
        ("0.0.0.0:9464", "--listen: 0.0.0.0:9464 is not a loopback address, and the page has no login."),
        ("10.0.0.1:9464", "in the config: monitoring: {listen: 10.0.0.1:9464}"),
    ],
)
def test_the_option_takes_loopback_addresses_only(world: World, listen: str, words: str) -> None:
    code, _, err = world.call("run", world.config, "--listen", listen)

    assert code == 2
    assert words in err


@pytest.mark.parametrize("listen", ["nonsense", "127.0.0.1", ":9464", "a b:1", "127.0.0.1:99999"])
def test_a_bad_address_in_the_config_is_an_error_with_its_line(world: World, listen: str) -> None:
    world.change("target:", f"monitoring: {{listen: '{listen}'}}\ntarget:")
    code, _, err = world.call("check", world.config)

    assert code == 2
    assert "monitoring.listen: must have the form HOST:PORT, such as 127.0.0.1:9464 or [::1]:9464" in err


def test_check_says_what_run_would_say_about_an_address(world: World) -> None:
    world.db.create_table("orders")
    world.change("target:", "monitoring: {listen: '192.0.2.1:9464'}\ntarget:")
    checked, findings, _ = world.call("check", world.config, "--human")
    ran, _, err = world.call("run", world.config)

    assert (checked, ran) == (2, 2)
    words = "192.0.2.1:9464 is not an address of this machine; use 127.0.0.1, or 0.0.0.0 for all of its addresses"
    assert f"monitoring.listen: {words}" in findings
    assert words in err


def test_check_notes_that_others_can_see_the_page(world: World) -> None:
    world.db.create_table("orders")
    world.change("target:", "monitoring: {listen: '0.0.0.0:9464'}\ntarget:")
    code, findings, _ = world.call("check", world.config, "--human")

    assert code == 0
    assert "note  monitoring: others can see the page: it has no login" in findings


def test_ipv6_addresses_are_written_in_brackets() -> None:
    assert Address.parsed("[::1]:9464") == Address("::1", 9464)
    assert str(Address("::1", 9464)) == "[::1]:9464"
    assert Address.parsed("localhost:80").loopback
    assert not Address.parsed("0.0.0.0:80").loopback
