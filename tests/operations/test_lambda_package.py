"""The zip of the function on AWS Lambda: what is in it, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import orjson
import pytest
from click.testing import CliRunner

from replicator.cli import main
from replicator.config import settings
from replicator.errors import ConfigError
from replicator.hooks.loading import load
from replicator.operations import lambda_package as operation
from replicator.operations.lambda_package import (
    HANDLER,
    LIBRARIES,
    Requirements,
    Wanted,
    build,
    install,
    requirements,
    runtime,
)

CONFIG = """
pipeline: orders
source: {table: orders, region: eu-west-1}
transform: hooks.py:hook
target: {type: postgres, url: "${POSTGRES_URL}", table: orders}
engine: {type: lambda}
"""
SEARCH = """
pipeline: orders
source: {table: orders, region: eu-west-1}
target: {type: elasticsearch, url: "https://search:9200", api_key: '${API_KEY}', table: orders}
checkpoints: {type: dynamodb, table: kept}
engine: {type: lambda}
"""
TABLE = """
pipeline: orders
source: {table: orders, region: eu-west-1}
target: {type: dynamodb, table: copies}
checkpoints: {type: dynamodb, table: kept}
engine: {type: lambda}
"""
TLS = "postgresql://me@db.example.com/shop?sslmode=verify-full&sslrootcert=/srv/ca.pem"
HOOK = """
import orjson, words
from replicator import Document

def hook(item):
    return {**item, 'w': words.WORD}
"""
START = """
import sys
sys.path.insert(0, sys.argv[1])
from importlib import import_module
module, _, name = "HANDLER".partition(".")
assert callable(getattr(import_module(module), name))
import replicator, connectors.postgres.target
from replicator.engine.aws_lambda import Container
container = Container(sys.argv[1] + "/replicator.yaml")
print(replicator.__file__, replicator.__cached__, connectors.postgres.target.__file__)
print(sorted(container._hook.function({"id": "a"}).items()))
print(container._hook.fingerprint)
""".replace("HANDLER", HANDLER)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "orders.yaml"
    path.write_text(CONFIG)
    (tmp_path / "hooks.py").write_text(HOOK)
    (tmp_path / "words.py").write_text("WORD = 'beside the hook'\n")
    (tmp_path / "secret.txt").write_text("not part of it")
    return path


def fake(wanted: Requirements, folder: Path) -> None:
    (folder / "bin").mkdir()
    shutil.copytree(Path(orjson.__file__).parent, folder / "orjson")
    (folder / "dependency.py").write_text(f"NAMES = {wanted.names!r}\n")


def test_a_package_starts_from_its_own_files_and_the_same_files_give_the_same_zip(config: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "1.zip", tmp_path / "2.zip"
    built = build(config, Wanted(), one, fake)
    assert build(config, Wanted(), two, fake) == built
    assert one.read_bytes() == two.read_bytes()
    assert built.size == one.stat().st_size
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(one) as archive:
        names = set(archive.namelist())
        archive.extractall(unpacked)
    assert {"replicator.yaml", "hooks.py", "words.py", f"{LIBRARIES}/dependency.py"} <= names
    assert not any(name.startswith((f"{LIBRARIES}/bin/", "secret")) or "replicator/testing/" in name for name in names)
    environ = {**os.environ, "POSTGRES_URL": "postgresql://localhost/shop", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", START, str(unpacked)], env=environ, cwd=unpacked, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    places, document, fingerprint = done.stdout.splitlines()
    assert all(place.startswith(str(unpacked)) for place in places.split())
    assert document == "[('id', 'a'), ('w', 'beside the hook')]"
    assert fingerprint == load("hooks.py:hook", tmp_path).fingerprint, "the function would refuse it as another hook"
    compiled = {name for name in names if name.endswith(".pyc")}
    assert len(compiled) == len([name for name in names if name.endswith(".py")])


TARGETS = """
pipeline: orders
source: {table: orders, region: eu-west-1}
engine: {type: lambda}
targets:
  shop: {type: postgres, url: "${SHOP_URL}", table: orders, transform: "hooks.py:hook"}
  audit: {type: postgres, url: "${file:secret.txt}", table: orders}
"""
NAMED = """
import sys
sys.path.insert(0, sys.argv[1])
import lambda_function
from replicator.engine import aws_lambda
print(aws_lambda._started()._config.pipeline)
"""


def test_the_package_for_one_of_several_targets_is_that_targets_function(config: Path, tmp_path: Path) -> None:
    """With the files and the variables of that target alone."""
    config.write_text(TARGETS)
    (tmp_path / "secret.txt").write_text("postgresql://me:secret@127.0.0.1/audit")
    out, unpacked = tmp_path / "1.zip", tmp_path / "unpacked"
    with pytest.raises(ConfigError, match=r"the config reads the file secret\.txt"):
        build(config, Wanted(target="audit"), out, fake)
    build(config, Wanted(target="shop"), out, fake)
    with zipfile.ZipFile(out) as archive:
        archive.extractall(unpacked)
    assert not (unpacked / "secret.txt").exists()
    environ = {**os.environ, "SHOP_URL": "postgresql://localhost/shop", "LAMBDA_TASK_ROOT": str(unpacked)}
    done = subprocess.run(
        [sys.executable, "-c", NAMED, str(unpacked)], env=environ, cwd=unpacked, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["orders.shop"]


def test_what_is_installed_here_is_what_is_packaged() -> None:
    wanted = requirements(["postgres"], Wanted("arm64", requirements=("polyline==2.0",)), 12)
    assert "polyline==2.0" in wanted.names
    assert any(name.startswith("psycopg[binary]") for name in wanted.names)
    assert not any(name.startswith(("pytest", "redis", "ray", "starlette")) for name in wanted.names)
    assert any(pin.startswith("boto3==") for pin in wanted.constraints)
    assert wanted.platforms[0] == "manylinux_2_34_aarch64"
    assert wanted.platforms[-1] == "manylinux2014_aarch64"
    assert requirements(["postgres"], Wanted(), 11).platforms[0] == "manylinux_2_26_x86_64"


def test_what_the_target_and_the_checkpoints_need_is_packaged_and_nothing_else(config: Path, tmp_path: Path) -> None:
    for text, transport, psycopg in (
        (SEARCH, True, False),
        (TABLE, False, False),
        (TABLE.replace("dynamodb, table: kept", "postgres, url: '${KEPT_URL}'"), False, True),
    ):
        asked: list[Requirements] = []

        def installing(wanted: Requirements, folder: Path, asked: list[Requirements] = asked) -> None:
            asked.append(wanted)
            fake(wanted, folder)

        config.write_text(text)
        build(config, Wanted(), tmp_path / "f.zip", installing)
        names = asked[0].names
        assert any(name.startswith("elastic-transport") for name in names) == transport
        assert any(name.startswith("psycopg[binary]") for name in names) == psycopg
        assert any(name.startswith("boto3") for name in names)


def test_a_certificate_authority_in_the_package_is_where_the_function_looks_for_it(
    config: Path, tmp_path: Path
) -> None:
    config.write_text(SEARCH.replace("table: orders}", "ca_certs: tls/ca.pem, table: orders}"))
    (tmp_path / "tls").mkdir()
    (tmp_path / "tls" / "ca.pem").write_text("")
    out, unpacked = tmp_path / "f.zip", tmp_path / "unpacked"
    build(config, Wanted(include=["tls/ca.pem"]), out, fake)
    with zipfile.ZipFile(out) as archive:
        archive.extractall(unpacked)
    loaded = settings.load(unpacked / "replicator.yaml", {"API_KEY": "x"})
    assert getattr(loaded.target.options, "ca_certs", None) == str(unpacked / "tls" / "ca.pem")


def test_pip_installs_wheels_into_the_package_or_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel, info = tmp_path / "tiny-1.0-py3-none-any.whl", "tiny-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny.py", "")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    stage = tmp_path / "work" / "stage" / LIBRARIES
    stage.mkdir(parents=True)
    install(Requirements(["tiny"], ["tiny==1.0"], ["manylinux2014_x86_64"]), stage)
    assert (stage / "tiny.py").is_file()
    with pytest.raises(ConfigError, match=r"pip cannot install what the function depends on: .*tiny"):
        install(Requirements(["tiny"], ["tiny==2.0"], ["manylinux2014_x86_64"]), stage)


def test_a_package_that_lambda_would_refuse_is_not_written(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operation, "_compile", lambda _: None)
    monkeypatch.setattr(operation, "LIMIT", 100_000)
    with pytest.raises(ConfigError, match=r"Lambda accepts 0 and 250\. The largest parts: replicator \("):
        build(config, Wanted(), tmp_path / "f.zip", fake)
    assert not (tmp_path / "f.zip").exists()


def test_a_version_of_python_that_lambda_does_not_have_is_refused() -> None:
    assert runtime(12) == "python3.12"
    with pytest.raises(ConfigError, match=r"this is Python 3\.19, and Lambda offers 3\.11"):
        runtime(19)


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        (CONFIG.replace("{type: lambda}", "{type: local}"), [], "engine.type must be lambda"),
        (CONFIG.replace("region:", "profile: shop, region:"), [], "source.profile: a function has no profiles"),
        (CONFIG.replace("hooks.py:hook", "away.py:hook"), [], "no such file"),
        (CONFIG.replace("hooks.py:hook", "../other.py:hook"), [], "is not in the config's folder"),
        (CONFIG.replace("hooks.py:hook", "away_hook:hook"), [], "transform: away_hook is installed, not in"),
        (CONFIG, ["--include", "away.pem"], "--include: no such file"),
        (CONFIG.replace("${POSTGRES_URL}", "${file:secret.txt}"), [], "reads the file secret.txt, which the function"),
        (
            CONFIG.replace("${POSTGRES_URL}", TLS),
            [],
            "url: sslrootcert: the function would not have the file /srv/ca.pem",
        ),
        (CONFIG.replace("${POSTGRES_URL}", TLS.replace("/srv/", "")), [], "the file ca.pem: add --include ca.pem"),
        (
            CONFIG.replace("table: orders}\nengine", "table: orders, password_file: /var/task/password}\nengine"),
            ["--include", "secret.txt"],
            "target.password_file: the function would not have the file /var/task/password: add --include password",
        ),
        (CONFIG, ["--include", "lambda_function.py"], "the package has a file of that name for AWS Lambda"),
        (
            CONFIG.replace("hooks.py:hook", "late.py:hook"),
            [],
            "late.py imports away_hook, which the function would not",
        ),
        (
            CONFIG.replace("${POSTGRES_URL}", "postgresql://me:hunter2@localhost/shop"),
            [],
            "target.url has a password in",
        ),
        (
            CONFIG.replace("${POSTGRES_URL}", "postgresql://me@localhost/shop?sslmode=require&password=hunter2"),
            [],
            "target.url has a password in",
        ),
        (
            CONFIG.replace("${POSTGRES_URL}", "postgresql://me@localhost/shop?sslpassword=hunter2"),
            [],
            "target.url has a password in",
        ),
        (CONFIG, ["--out", "no/such/f.zip"], "--out: no such folder: no/such"),
        (
            SEARCH.replace("table: orders}", "ca_certs: ca.pem, table: orders}"),
            [],
            "target.ca_certs: the function would not have the file ca.pem: add --include ca.pem",
        ),
        (
            SEARCH.replace("table: orders}", "ca_certs: FOLDER/ca.pem, table: orders}"),
            ["--include", "ca.pem"],
            "put it into the config's folder, add --include ca.pem, and name it ca.pem",
        ),
        (
            SEARCH.replace("table: orders}", "ca_certs: '${CA_FILE}', table: orders}"),
            [],
            "target.ca_certs: the file is named by a variable (${CA_FILE}): set that to the function's value while",
        ),
        (
            SEARCH.replace("table: orders}", "ca_certs: ../other.py, table: orders}"),
            [],
            "put it into the config's folder, add --include other.py, and name it other.py",
        ),
        (
            SEARCH.replace("table: orders}", "client_cert: ca.pem, client_key: ca.pem, table: orders}"),
            ["--include", "ca.pem"],
            "target.client_key: in a zip or a layer, everyone who may read that would have the private key",
        ),
        (SEARCH.replace("${API_KEY}", "hunter2"), [], "target.api_key has a password in"),
        (
            SEARCH.replace("api_key: '${API_KEY}'", "username: me, password: hunter2"),
            [],
            "target.password has a password in",
        ),
        (
            SEARCH.replace("table: orders}", "proxy: 'http://me:hunter2@proxy:3128', table: orders}"),
            [],
            "target.proxy has a password in",
        ),
        (
            SEARCH.replace("elasticsearch", "opensearch").replace("api_key: '${API_KEY}'", "aws: {profile: shop}"),
            [],
            "target.aws.profile: a function has no profiles, but the permissions of its role: leave it out, or set "
            "target.aws.role_arn",
        ),
        (TABLE.replace("table: copies", "profile: shop, table: copies"), [], "target.profile: a function has no"),
        (TABLE.replace("table: kept", "profile: shop, table: kept"), [], "checkpoints.profile: a function has no"),
        (TABLE.replace("dynamodb, table: kept", "sqlite"), [], "checkpoints: a file is on one machine, and a function"),
        (
            TABLE.replace("dynamodb, table: kept", "postgres, url: postgresql:///kept, password_file: /srv/password"),
            [],
            "checkpoints.password_file: the function would not have the file /srv/password",
        ),
    ],
)
def test_what_cannot_be_packaged_is_refused_with_the_reason(
    config: Path,
    text: str,
    options: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    installed = tmp_path_factory.mktemp("installed")
    config.write_text(text.replace("FOLDER", str(config.parent)))
    config.with_name("ca.pem").write_text("")
    config.with_name("secret.txt").write_text("postgresql://localhost/shop")
    config.with_name("lambda_function.py").write_text("")
    config.with_name("late.py").write_text("import os, words, away_hook\n\ndef hook(item):\n    return item\n")
    for elsewhere in (config.parent.parent / "other.py", installed / "away_hook.py"):
        elsewhere.write_text("def hook(item):\n    return item\n")
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.setattr(operation, "install", fake)
    monkeypatch.setattr(operation, "_copy_own", lambda _: None)
    out = config.with_name("f.zip")
    result = CliRunner().invoke(main, ["lambda", "package", str(config), "--out", str(out), *options, "--json"])
    assert result.exit_code == 2, result.output
    assert said in json.loads(result.stderr)["problems"][0]
    assert not out.exists()


NEEDED = {
    "a function": """
def hook(item):
    import missing_here
    return item
""",
    "a branch of it": """
def hook(item):
    if item.get("x"):
        from missing_here.part import x
    return item
""",
    "a method": """
class Rates:
    def read(self):
        with open("rates"):
            import missing_here

hook = dict
""",
    "a function of a function": """
def hook(item):
    async def look_up():
        import missing_here
    return item
""",
    "a function that is no hook": """
def main():
    import missing_here

hook = dict
""",
    "a with": """
import os
with os.scandir("."):
    from missing_here import x

hook = dict
""",
    "a match": """
def hook(item):
    match item:
        case _:
            import missing_here
    return item
""",
}
CAN_DO_WITHOUT = {
    "try": """
def hook(item):
    try:
        import missing_here
    except ImportError:
        pass
    return item
""",
    "suppress": """
import contextlib
with contextlib.suppress(ImportError):
    import missing_here

hook = dict
""",
    "suppress in a function": """
from contextlib import suppress

def hook(item):
    with open("rates"), suppress(ImportError):
        import missing_here
    return item
""",
    "types": """
import typing
if typing.TYPE_CHECKING:
    import missing_here

def hook(item):
    return item
""",
    "types in a function": """
from typing import TYPE_CHECKING

def hook(item):
    if TYPE_CHECKING:
        import missing_here
    return item
""",
    "a version": """
import sys

def hook(item):
    if sys.version_info < (3, 11):
        import missing_here
    return item
""",
    "what is there": """
def hook(item):
    import json, words, orjson
    from . import words as w
    return item
""",
}


@pytest.mark.parametrize("place", NEEDED)
def test_what_a_function_of_the_hook_imports_is_named_if_the_package_would_lack_it(
    config: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may park every item; but the hook may never come to it, or a layer has it, so the package is built."""
    found = importlib.util.spec_from_loader("missing_here", None)
    assert found is not None
    monkeypatch.setitem(sys.modules, "missing_here", SimpleNamespace(__spec__=found, x=1))
    monkeypatch.setattr(operation, "install", fake)
    monkeypatch.setattr(operation, "_copy_own", lambda _: None)
    config.with_name("hooks.py").write_text(NEEDED[place])
    out = config.with_name("f.zip")
    given = ["lambda", "package", str(config), "--out", str(out)]
    (named,) = json.loads(CliRunner().invoke(main, [*given, "--json"]).stdout)["notes"]
    assert named.startswith("hooks.py imports missing_here in a function or a block, and the package does not have it")
    assert named.endswith("--requirement NAME==VERSION; an item whose hook cannot import it is parked")
    out.unlink()
    told = CliRunner().invoke(main, [*given, "--human"])
    assert (told.exit_code, told.stderr, out.exists()) == (0, f"note: {named}\n", True)


@pytest.mark.parametrize("place", CAN_DO_WITHOUT)
def test_what_the_hook_can_do_without_may_be_missing_in_the_package(
    config: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operation, "_copy_own", lambda _: None)
    config.with_name("hooks.py").write_text(CAN_DO_WITHOUT[place])
    assert build(config, Wanted(), config.with_name("f.zip"), fake).notes == []


@pytest.mark.parametrize("path", ["ca.pem", "/var/task/ca.pem", "/opt/ca.pem", "/mnt/efs/ca.pem", "system"])
def test_files_that_the_function_will_have_may_be_named(config: Path, tmp_path: Path, path: str) -> None:
    config.write_text(CONFIG.replace("${POSTGRES_URL}", TLS.replace("/srv/ca.pem", path)))
    (tmp_path / "ca.pem").write_text("of an authority")
    included = ["ca.pem"] if path.endswith("ca.pem") and not path.startswith(("/opt", "/mnt")) else []
    build(config, Wanted(include=included), tmp_path / "f.zip", fake)


def test_the_command_says_what_it_has_built(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operation, "install", fake)
    monkeypatch.setattr(operation, "_copy_own", lambda _: None)
    out = config.with_name("f.zip")
    given = ["lambda", "package", str(config), "--out", str(out), "--include", "secret.txt"]
    told = json.loads(CliRunner().invoke(main, [*given, "--json"]).output)
    assert told["size"] == out.stat().st_size
    assert told["runtime"] == runtime()
    assert "secret.txt" in zipfile.ZipFile(out).namelist()
    assert told["sha256"] in CliRunner().invoke(main, [*given, "--human"]).output


def test_the_package_of_a_target_is_not_written_over_that_of_another(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text(TARGETS.replace("secret.txt", "SECRET"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(operation, "build", lambda *_: operation.Package(1, "", ""))
    for target in ("shop", "audit"):
        result = CliRunner().invoke(main, ["lambda", "package", str(config), "--target", target, "--human"])
        assert result.output.startswith(f"{target}.zip: ")


URL = "sslmode=verify-full"


@pytest.mark.parametrize(
    ("url", "refused"),
    [
        ("host=db user=u password=hunter2 dbname=shop " + URL, True),
        ("host=db password = ${PW} dbname=shop " + URL, False),
        ("postgresql://u:${PW}@db/shop?sslpassword=hunter2&" + URL, True),
        ("postgresql://u:${PW}@db/shop?sslpassword=${PW}&" + URL, False),
    ],
)
def test_a_password_is_found_however_it_is_written(tmp_path: Path, url: str, refused: bool) -> None:
    path = tmp_path / "orders.yaml"
    path.write_text(CONFIG.replace("${POSTGRES_URL}", url))
    if refused:
        with pytest.raises(ConfigError, match=r"target\.url has a password in it"):
            operation._check_secrets(path)
    else:
        operation._check_secrets(path)


def test_texts_that_are_no_secrets_are_not_refused_and_a_header_may_be_one(tmp_path: Path) -> None:
    path = tmp_path / "orders.yaml"
    text = "target: {password: '', headers: {Content-Type: application/json, accept: text/plain, X-Env: prod}}\n"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"target\.headers\.X-Env may be a secret, which would be in the zip"):
        operation._check_secrets(path)
    path.write_text(text.replace("prod", "'${STAGE}'"))
    operation._check_secrets(path)


def test_a_secret_of_another_target_is_refused_too_since_the_zip_has_the_whole_config(tmp_path: Path) -> None:
    path = tmp_path / "orders.yaml"
    other = "{type: elasticsearch, url: https://es, username: elastic, password: SECRET, index: password}"
    shop = "{type: postgres, url: '${URL}', table: orders, columns: {password: password}}"
    text = f"pipeline: orders\nsource: {{table: orders}}\ntargets:\n  shop: {shop}\n  search: {other}\n"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"targets\.search\.password has a password in it"):
        operation._check_secrets(path)
    path.write_text(text.replace("SECRET", "'${ES_PASSWORD}'"))
    operation._check_secrets(path)


def test_the_secret_options_of_each_target_and_store_are_known() -> None:
    """Those that are addresses are looked at for what is in them."""
    groups = ("replicator.targets", "replicator.checkpoints")
    models = [p.load().Options for group in groups for p in metadata.entry_points(group=group)]
    secret = {n for m in models for n, f in m.model_fields.items() if "SecretStr" in repr(f)}
    assert len(models) > 5
    assert secret - {"url", "proxy"} == set(operation.SECRETS)
