"""Client certificates, against a server that requires one."""

from __future__ import annotations

import os
import shutil
import ssl
import stat
import subprocess
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from elastic_transport import TlsError

from connectors.elasticsearch import ElasticsearchOptions
from connectors.search.connection import no_response
from connectors.search.target import SearchTarget
from replicator.batch import Outcome
from replicator.config.settings import load
from replicator.errors import ConfigError, NotPermitted, TransientError
from replicator.files import key_exposure
from replicator.testing.contract.kit import batch, put
from tests.certificates import Pair, certificate_in, pair_in, presenting, requiring
from tests.connectors.search.search_kit import client
from tests.connectors.search.test_responses import TABLE, Server, served


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def certificate(folder: Path) -> Path:
    return certificate_in(folder)


@pytest.fixture(scope="module")
def pair(folder: Path) -> Pair:
    return pair_in(folder)


@pytest.fixture(scope="module")
def other(folder: Path) -> Pair:
    return pair_in(folder, "other")


def secured(context: ssl.SSLContext) -> Iterator[Server]:
    def wrap(http: ThreadingHTTPServer) -> None:
        http.socket = context.wrap_socket(http.socket, server_side=True, do_handshake_on_connect=False)

    yield from served(Server(), wrap)


@pytest.fixture
def context(certificate: Path, pair: Pair) -> ssl.SSLContext:
    return requiring(certificate, pair.certificate)


@pytest.fixture
def secure(context: ssl.SSLContext) -> Iterator[Server]:
    yield from secured(context)


@pytest.fixture
def connect(secure: Server, certificate: Path) -> Callable[..., SearchTarget]:
    url = f"https://127.0.0.1:{secure.port}"
    return lambda **options: client("elasticsearch", url=url, ca_certs=str(certificate), **options)


Connect = Callable[..., SearchTarget]


@pytest.mark.parametrize("latest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_server_that_requires_a_client_certificate_accepts_ours(
    context: ssl.SSLContext, secure: Server, connect: Connect, pair: Pair, latest: ssl.TLSVersion
) -> None:
    context.maximum_version = latest
    target = connect(**pair.options)
    target.open([TABLE], 1024)
    assert target.write(batch(put({"pk": "a"}, 1))) == Outcome()


def test_an_unknown_certificate_is_a_refused_login(context: ssl.SSLContext, connect: Connect, other: Pair) -> None:
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(NotPermitted, match=r"refuses the client certificate, or lacks one\. Set target.client_cert"):
        connect(**other.options).check([TABLE])


@pytest.mark.parametrize("latest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_where_a_certificate_is_missing_the_message_names_the_option(
    context: ssl.SSLContext, connect: Connect, latest: ssl.TLSVersion
) -> None:
    """Whether the server's alert arrives before it hangs up, or not."""
    context.maximum_version = latest
    with pytest.raises((NotPermitted, TransientError), match=r"target\.client_cert"):
        connect().check([TABLE])


def test_an_alert_about_the_certificate_is_a_refused_login() -> None:
    for alert in ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_CERTIFICATE_EXPIRED", "TLSV1_ALERT_UNKNOWN_CA"):
        error = TlsError("it failed")
        error.__cause__ = ssl.SSLError(1, f"[SSL: {alert}] (_ssl.c:1)")
        assert isinstance(no_response(error, "the server"), NotPermitted)


def test_a_certificate_that_was_accepted_before_is_waited_for_and_a_renewed_one_is_used_without_a_restart(
    context: ssl.SSLContext, secure: Server, connect: Connect, pair: Pair, other: Pair, tmp_path: Path
) -> None:
    used = Pair(tmp_path / "crt", tmp_path / "key")

    def renew(to: Pair) -> None:
        shutil.copy(to.certificate, used.certificate)
        shutil.copy(to.key, used.key)

    context.maximum_version = ssl.TLSVersion.TLSv1_2
    renew(pair)
    target = connect(**used.options)
    target.open([TABLE], 1024)
    _hang_up(target)
    renew(other)
    with pytest.raises(TransientError, match="It was accepted before: was it changed, or has it expired"):
        target.write(batch(put({"pk": "a"}, 1)))
    assert not target.in_doubt
    renew(pair)
    assert target.write(batch(put({"pk": "a"}, 1))) == Outcome()


def _hang_up(target: SearchTarget) -> None:
    """Close the connections of the pool, so that the next request opens another."""
    transport = target._connection._transport
    assert transport is not None
    pool = transport.node_pool.get().pool  # type: ignore[attr-defined]
    while not pool.pool.empty():
        if (connection := pool.pool.get_nowait()) is not None:
            connection.close()
    for _ in range(pool.pool.maxsize):
        pool.pool.put_nowait(None)


def _readable(pair: Pair, _: Path) -> Pair:
    pair.key.chmod(0o644)
    return pair


def _encrypted(pair: Pair, tmp_path: Path) -> Pair:
    key = tmp_path / "encrypted.key"
    command = f"openssl pkey -in {pair.key} -aes256 -passout pass:secret -out {key}"
    subprocess.run(command.split(), check=True, capture_output=True)
    key.chmod(0o600)
    return Pair(pair.certificate, key)


def _invalid(pair: Pair, _: Path) -> Pair:
    pair.certificate.write_text("no certificate")
    return pair


UNUSABLE: dict[str, tuple[Callable[[Pair, Path], Pair], str]] = {
    "absent certificate": (
        lambda pair, folder: Pair(folder / "none", pair.key),
        r"target\.client_cert: cannot read /.*/none: No such file or directory",
    ),
    "absent key": (
        lambda pair, folder: Pair(pair.certificate, folder / "none"),
        r"target\.client_key: cannot read /.*/none: No such file or directory",
    ),
    "folder": (
        lambda pair, folder: Pair(folder, pair.key),
        r"target\.client_cert: cannot read .*: it is not a regular file|Is a directory",
    ),
    "readable by others": (_readable, r"target\.client_key: other users may access .* \(mode 06.*\); chmod 600 /"),
    "passphrase": (_encrypted, r"target\.client_key: .* is encrypted; .* openssl pkey -in .*encrypted\.key -out NEW"),
    "not its key": (
        lambda pair, folder: Pair(pair.certificate, pair_in(folder, "another").key),
        r"target\.client_key: .*another\.key is not the key of the certificate in /.*client\.crt",
    ),
    "no certificate": (_invalid, r"target\.client_cert and client_key: .* do not contain a certificate and its key"),
}


@pytest.mark.parametrize("spoil", UNUSABLE)
def test_a_pair_that_cannot_be_used_is_said_before_anything_is_sent(pair: Pair, tmp_path: Path, spoil: str) -> None:
    own = Pair(tmp_path / "client.crt", tmp_path / "client.key")
    for source, to in ((pair.certificate, own.certificate), (pair.key, own.key)):
        shutil.copy(source, to)
    change, said = UNUSABLE[spoil]
    target = client("elasticsearch", url="https://127.0.0.1:9", **change(own, tmp_path).options)
    (problem,) = target.check([TABLE])
    with pytest.raises(ConfigError, match=said):
        raise ConfigError(problem)


@pytest.mark.parametrize(
    ("owner", "mode", "said"),
    [
        (1000, 0o600, ""),
        (1000, 0o640, "other users may access key (mode 0640); chmod 600 key"),
        (0, 0o640, ""),  # as Kubernetes mounts secrets
        (0, 0o644, "other users may access key (mode 0644); chmod 600 key"),
        (0, 0o660, "other users may access key (mode 0660); chmod 600 key"),
        (1001, 0o600, "key belongs to another user (id 1001)"),
    ],
)
def test_a_key_may_be_read_by_its_owner_and_if_it_is_roots_by_a_group(
    monkeypatch: pytest.MonkeyPatch, owner: int, mode: int, said: str
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    status = os.stat_result((stat.S_IFREG | mode, 0, 0, 1, owner, 0, 0, 0, 0, 0))
    monkeypatch.setattr(Path, "stat", lambda _: status)
    assert key_exposure(Path("key")) == said


@pytest.fixture
def open_to_all(certificate: Path) -> Iterator[Server]:
    yield from secured(presenting(certificate))


def test_names_of_files_are_relative_to_the_config(certificate: Path, tmp_path: Path) -> None:
    shutil.copy(certificate, tmp_path / "ca.pem")
    target = "{type: elasticsearch, url: https://h, table: t, ca_certs: ca.pem, client_cert: crt, client_key: /key}"
    (tmp_path / "p.yaml").write_text(f"pipeline: p\nsource: {{table: orders}}\ntarget: {target}\n")
    options = load(tmp_path / "p.yaml").target.options
    assert isinstance(options, ElasticsearchOptions)
    assert (options.ca_certs, options.client_cert, options.client_key) == (
        str(tmp_path / "ca.pem"), str(tmp_path / "crt"), "/key",
    )  # fmt: skip


def test_a_file_of_authorities_that_only_a_function_of_aws_lambda_may_have_is_missed_when_it_is_used() -> None:
    (problem,) = client("elasticsearch", url="https://127.0.0.1:9", ca_certs="/opt/none.pem").check([TABLE])
    assert problem == "target.ca_certs: must be a file of certificates, and there is none at /opt/none.pem"


def test_with_ca_certs_no_authority_of_the_system_is_trusted(
    open_to_all: Server, certificate: Path, other: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    url = f"https://127.0.0.1:{open_to_all.port}"
    assert list(client("elasticsearch", url=url).check([TABLE])) == []
    (problem,) = client("elasticsearch", url=url, ca_certs=str(other.certificate)).check([TABLE])
    assert "has a certificate that is not trusted" in problem
