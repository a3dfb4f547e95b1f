"""A forward proxy between replicator and the cluster."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from connectors.search.target import SearchTarget
from replicator.batch import Outcome
from replicator.errors import NotPermitted, TransientError
from replicator.testing.contract.kit import batch, put
from replicator.version import FIRST_EPOCH
from tests.certificates import certificate_in, presenting
from tests.connectors.search.search_kit import client
from tests.connectors.search.test_responses import TABLE, Server, served
from tests.connectors.search.tunnels import Tunnels, tunnels
from tests.security.canary import SECRET

LOGIN = f"Basic {base64.b64encode(f'me:{SECRET}/é'.encode()).decode()}"
IN_URL = f"me:{SECRET}%2F%C3%A9@"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate_in(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def secure(certificate: Path) -> Iterator[Server]:
    context = presenting(certificate)

    def wrap(http: ThreadingHTTPServer) -> None:
        http.socket = context.wrap_socket(http.socket, server_side=True, do_handshake_on_connect=False)

    yield from served(Server(), wrap)


@pytest.fixture
def proxy() -> Iterator[Tunnels]:
    with tunnels(Tunnels(hosts={"cluster.invalid": "127.0.0.1"})) as found:
        yield found


def through(proxy: Tunnels, url: str, authorities: Path | None, login: str = "") -> SearchTarget:
    trusted = {} if authorities is None else {"ca_certs": str(authorities)}
    return client("elasticsearch", url=url, proxy=f"http://{login}127.0.0.1:{proxy.port}", **trusted)


def url(secure: Server, host: str = "127.0.0.1") -> str:
    return f"https://{host}:{secure.port}"


@pytest.mark.parametrize(("login", "header"), [("", None), (IN_URL, LOGIN)])
def test_every_request_goes_through_the_proxy_and_the_server_sees_no_login_of_the_proxy(
    secure: Server, proxy: Tunnels, certificate: Path, login: str, header: str | None
) -> None:
    proxy.login = header
    target = through(proxy, url(secure), certificate, login)
    target.open([TABLE], FIRST_EPOCH)
    assert target.write(batch(put({"pk": "a"}, 1))) == Outcome()
    assert set(proxy.asked) == {(f"127.0.0.1:{secure.port}", header)}
    assert all("proxy-authorization" not in headers for _, headers, _ in secure.requests)


def test_certificates_are_checked_behind_the_proxy_too(secure: Server, proxy: Tunnels, certificate: Path) -> None:
    """Also against the name in ``url``, which only the proxy can resolve here."""
    for place, trusted in (("127.0.0.1", None), ("cluster.invalid", certificate)):
        (problem,) = through(proxy, url(secure, place), trusted).check([TABLE])
        assert "has a certificate that is not trusted or is for another host name" in problem
    assert secure.requests == []


@pytest.mark.parametrize(
    ("login", "refusal", "error", "said"),
    [
        (
            "me:wrong@",
            None,
            NotPermitted,
            "the proxy 127.0.0.1:PORT refuses the login (407 Proxy",
        ),
        (
            "",
            403,
            NotPermitted,
            "the proxy 127.0.0.1:PORT does not permit connections to Elasticsearch at cluster",
        ),
        ("", 502, TransientError, "cannot be reached through the proxy 127.0.0.1:PORT: 502 Bad Gateway"),
    ],
)
def test_a_refusal_by_the_proxy_names_it(
    proxy: Tunnels, login: str, refusal: int | None, error: type[Exception], said: str
) -> None:
    proxy.refusal = refusal
    target = through(proxy, "https://cluster.invalid:9", None, login)
    with pytest.raises(error) as e:
        target.check([TABLE])
    assert said.replace("PORT", str(proxy.port)) in str(e.value)


def test_a_proxy_that_refuses_later_or_is_gone_is_waited_for_and_leaves_nothing_in_doubt(
    secure: Server, certificate: Path
) -> None:
    with tunnels() as proxy:
        target = through(proxy, url(secure), certificate)
        target.open([TABLE], FIRST_EPOCH)
        target._connection.close()  # so that the next request opens a new tunnel
        proxy.refusal = 403
        with pytest.raises(TransientError, match=r"does not permit connections .* It was accepted before"):
            target.write(batch(put({"pk": "a"}, 1)))
    target._connection.close()
    with pytest.raises(TransientError, match=f"cannot be reached through the proxy 127.0.0.1:{proxy.port}: "):
        target.write(batch(put({"pk": "a"}, 1)))
    assert not target.in_doubt


def test_the_login_of_the_proxy_is_in_no_message_and_no_log(
    secure: Server, proxy: Tunnels, caplog: pytest.LogCaptureFixture
) -> None:
    """Messages and logs are also searched for it by the plugin that looks for secrets in all output."""
    caplog.set_level(logging.DEBUG)
    target = through(proxy, url(secure), None, IN_URL)
    for status in (407, 403, 502):
        proxy.login, proxy.refusal = (None, None) if status == 407 else (LOGIN, status)
        with pytest.raises((NotPermitted, TransientError)) as e:
            target.check([TABLE])
        assert SECRET not in f"{e.value!r} {e.value.__cause__!r}"
    assert SECRET not in caplog.text
    assert SECRET not in repr(target._connection.__dict__)


def test_the_environment_names_no_proxy_for_a_cluster(
    secure: Server, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with the engines' own clients; the source's requests may need one where the cluster's do not."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert list(client("elasticsearch", url=url(secure), ca_certs=str(certificate)).check([TABLE])) == []


def test_a_configured_proxy_is_used_whatever_the_environment_excepts(
    secure: Server, proxy: Tunnels, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    assert list(through(proxy, url(secure), certificate).check([TABLE])) == []
    assert proxy.asked
