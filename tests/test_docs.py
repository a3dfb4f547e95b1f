"""What the documents say is so: every command is run, every config loaded, every hook called, every link followed."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import tomllib
from decimal import Decimal
from pathlib import Path
from textwrap import dedent
from typing import Any, get_args

import click
import pytest
import yaml

from connectors.postgres.options import ColumnType
from replicator.cli import main
from replicator.config import reference, settings
from replicator.hooks.hook import DocumentMapping
from replicator.hooks.loading import load
from replicator.items.attributes import image
from replicator.operations.preview import preview
from replicator.pipeline.progress import Backfill as BackfillProgress
from replicator.pipeline.progress import Progress, Verifying, WorkerProgress, as_values
from replicator.state import Gap, HistoryReport, Owner, ResyncRequest, Stripped, Verified
from replicator.target import contract
from tests.cli.command_line import World
from tests.test_faults_table import is_said

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
ENVIRON = {
    "ELASTICSEARCH_URL": "https://localhost:9200",
    "POSTGRES_URL": "postgresql://localhost/shop",
    "AWS_REGION": "eu-west-1",
    "API_KEY": "a2V5",
    "ELASTICSEARCH_KEY": "a2V5",
    "OPENSEARCH_PASSWORD": "p",
    "REDIS_PASSWORD": "p",
    "SENTINEL_PASSWORD": "p",
    "PROXY_PASSWORD": "p",
    "WEBHOOK_URL": "https://hooks.example.com/orders",
    "WEBHOOK_SECRET": "whsec_" + "c2VjcmV0" * 4,
}
DEPLOYING = {"bash", "dockerfile", "ini"}  # in docs/deploying.md, docs/scaling.md and README.md: see tests/deploy
BASE = {
    "pipeline": "p",
    "source": {"table": "orders"},
    "target": {"type": "postgres", "url": "${POSTGRES_URL}", "table": "t"},
}


def blocks(language: str) -> list[tuple[str, str]]:
    """(document, text) of every code block in that language, indented or not."""
    found = re.compile(rf"^( *)```{language}\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
    return [
        (str(path.relative_to(ROOT)), dedent(text)) for path in DOCUMENTS for _, text in found.findall(path.read_text())
    ]


def commands() -> list[list[str]]:
    """Every documented command, without its comment, once."""
    lines = (line for _, text in blocks("sh") for line in text.splitlines() if line.strip())
    return [shlex.split(line, comments=True) for line in dict.fromkeys(line.split("  #")[0].rstrip() for line in lines)]


REPLICATOR = [c[1:] for c in commands() if c[0] == "replicator"]
MAKE = [target for c in commands() if c[0] == "make" for target in c[1:]]


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    kinds = {kind for path in DOCUMENTS for kind in re.findall(r"^```(\w+)$", path.read_text(), re.MULTILINE)}

    assert kinds <= {"sh", "console", "yaml", "python", "json", "toml", "sql"} | DEPLOYING
    assert {path.name for path in DOCUMENTS if "\n```sql\n" in path.read_text()} == {"several-targets.md"}
    assert {c[0] for c in commands()} == {"replicator", "make"}


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()

    assert {"install", "demo", "test"} <= set(MAKE)
    for target in MAKE:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_make_target_can_be_made() -> None:
    for target in re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE):
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


@pytest.fixture
def orders(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A pipeline as the documents talk of it: in ``orders.yaml`` here, with ``order#1`` parked for good."""
    world.db.create_table("orders")
    world.db.put("orders", {"id": "order#1"})
    world.db.put("orders", {"id": "order#2", "total": 1})
    world.hook("def hook(item):\n    return {'total': item['total']}\n")
    monkeypatch.chdir(world.folder)
    return world


@pytest.mark.parametrize("arguments", REPLICATOR, ids=" ".join)
def test_every_command_does_what_is_said(orders: World, arguments: list[str]) -> None:
    if "orders-back.yaml" in arguments:
        pytest.skip("tests/test_migrating.py carries it out")
    if "products-2.yaml" in arguments:
        pytest.skip("tests/cli/test_rebuild_search.py carries it out")
    if "shop.yaml" in arguments:
        pytest.skip("tests/cli/test_targets.py carries it out")
    if arguments[0] == "lambda" or "backfilled" in arguments:
        pytest.skip("tests/operations/test_lambda_package.py and tests/end_to_end/test_lambda.py carry it out")
    if arguments[0] == "history":
        pytest.skip("tests/connectors/postgres/test_history.py carries it out")
    if arguments[0] == "rebuild":
        pytest.skip("tests/cli/test_rebuild.py carries it out")
    if arguments[0] in ("parked", "status", "resync", "verify", "cutover", "strip"):
        orders.catch_up()
    if (arguments[0] == "run" or "--now" in arguments) and "--until" not in arguments:
        assert stopped_once_live(orders, arguments) == 0
        return
    code, out, err = orders.call(*arguments)
    expected = {"parked retry": 6, "run orders.yaml": 6, "status orders.yaml": 7, "verify orders.yaml": 6}
    expected |= {"cutover orders.yaml": 6, "strip orders.yaml": 2}  # tests/test_migrating.py strips a table
    waits = 6 if "--now" in arguments else 0
    assert code == expected.get(" ".join(arguments[:2]), waits), err  # an item is parked, and no run is up
    assert out or code == 2


@pytest.mark.parametrize(("document", "text"), blocks("console"))
def test_a_command_prints_what_the_documents_show(
    world: World, monkeypatch: pytest.MonkeyPatch, document: str, text: str
) -> None:
    world.db.create_table("orders")
    world.db.put("orders", {"id": "order#1", "total": 1})
    monkeypatch.chdir(world.folder)
    command, *shown = text.splitlines()
    code, out, err = world.call(*shlex.split(command.removeprefix("$ replicator ")), "--human")

    assert code == 0, err
    lines = iter(out.splitlines())
    for line in shown:
        form = re.compile(".*".join(re.escape(part) for part in line.split("…")))
        assert any(form.match(printed) for printed in lines), line


def test_the_steps_of_the_quick_start_end_in_typed_rows(world: World) -> None:
    world.db.create_table("orders")
    world.db.put("orders", {"id": "1", "customer": "ann", "total": Decimal("3.30"), "status": "new"})
    world.db.put("orders", {"id": "2", "customer": "bob", "total": 1, "status": "draft"})
    world.catch_up()
    ((_, hook),) = [block for block in blocks("python") if block[0] == "docs/quickstart.md"]
    (*_, (_, section)) = [block for block in blocks("yaml") if block[0] == "docs/quickstart.md"]
    (world.folder / "hooks.py").write_text(hook)
    config = yaml.safe_load(Path(world.config).read_text())
    added = yaml.safe_load(section)
    added["target"]["url"] = config["target"]["url"]
    Path(world.config).write_text(yaml.safe_dump(config | added))
    refused, _, _ = world.call("run", world.config, "--until", "caught-up")
    with world.postgres.connect() as connection:
        connection.execute("DROP TABLE orders")
    code, _, err = world.shell.run("resync", world.config, "--now", "--until", "caught-up")

    assert refused == 2
    assert code == 0, err
    assert world.rows("SELECT id, customer, total FROM orders") == [("1", "ann", Decimal("3.30"))]


def stopped_once_live(world: World, arguments: list[str]) -> int:
    with world.shell.start(*arguments, cwd=world.folder) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line).get("phase") == "live":
                break
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    return process.returncode


def test_every_command_is_documented() -> None:
    documented = {c[0] for c in REPLICATOR} | {"demo", "version"}  # `make demo`; a version needs no words
    text = "".join(path.read_text() for path in DOCUMENTS)

    for name, command in main.commands.items():
        assert name in documented or f"`replicator {name}`" in text, name
        if isinstance(command, click.Group):
            assert {c[1] for c in REPLICATOR if c[0] == name} == set(command.commands)


@pytest.mark.parametrize(("document", "text"), blocks("yaml"))
def test_every_config_loads(tmp_path: Path, document: str, text: str) -> None:
    path = tmp_path / "orders.yaml"
    given = yaml.safe_load(text)
    base = {name: value for name, value in BASE.items() if name != "target" or "targets" not in given}
    path.write_text(yaml.safe_dump(base | given))

    assert all(config.pipeline for config in settings.load_each(path, ENVIRON))


HOOKS = [(document, text) for document, text in blocks("python") if "(item)" in text]


@pytest.mark.parametrize(("document", "text"), HOOKS)
def test_every_hook_can_be_called(tmp_path: Path, document: str, text: str) -> None:
    (tmp_path / "hooks.py").write_text(text)
    name = re.findall(r"^def (\w+)\(item\)", text, re.MULTILINE)[0]
    hook = load(f"hooks.py:{name}", tmp_path)
    item = {"sk": "o", "status": "new", "customer": "c", "total": Decimal("1.5"), "lines": [{"sku": "a"}, {"sku": "b"}]}
    found = preview(("o",), image(item), DocumentMapping(hook, ("orders", "order_lines")))

    assert found.problem is None
    assert len(found.writes) == (3 if hook.declared else 1)


def test_a_target_of_ones_own_is_documented_as_it_is_tested() -> None:
    tested = (ROOT / "tests" / "test_own_target.py").read_text()
    ((_, points),) = blocks("toml")
    ((_, suite),) = [block for block in blocks("python") if block not in HOOKS]

    for group, entries in tomllib.loads(points)["project"]["entry-points"].items():
        for name, place in entries.items():
            assert f"[{group}]\\n{name} = {place}\\n" in tested
    for line in suite.splitlines():
        told = re.sub(r", tmp_path\).*", "", line.partition("#")[0]).strip()
        assert told in tested, line


def table_names(document: str) -> set[str]:
    """What stands in backticks in the first column of a document's tables."""
    rows = re.findall(r"^\| (.*?) \|", (ROOT / "docs" / document).read_text(), re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_every_json_field_of_status_is_documented_and_no_other() -> None:
    text = (
        (ROOT / "docs" / "operations.md")
        .read_text()
        .partition("### JSON fields")[2]
        .partition("\n\n`progress` events")[0]
    )
    documented = {
        name for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for name in re.findall(r"`(.+?)`", row)
    }
    progress = Progress(
        "backfill",
        backfill=BackfillProgress(1, 4, 20, 100, 5.0, 16.0),
        gaps=(Gap("trimmed", 0.0, 1024, "shard", "17"),),
        owner=Owner("run", "host", 1, 0.0),
        request=ResyncRequest(0.0, ""),
        verified=Verified(0.0, 1.0, 1024, "full", 4),
        verifying=Verifying(Verified(0.0, 1.0, 1024, "full", 4), "run"),
        stripped=Stripped(0.0),
        workers=(WorkerProgress("0"),),
        histories=(HistoryReport("orders", 0.0, 0.0, None, 1, 1),),
    )

    given = json_fields(as_values(progress)) | {"pipeline", "reduced_guarantee"}
    assert documented == given - {"shards", "counts"}, "objects that are never null need no row"


def json_fields(value: Any, prefix: str = "") -> set[str]:
    """The paths of all names in JSON values: ``counts.read``."""
    match value:
        case dict():
            names = {f"{prefix}{name}" for name in value}
            return names.union(*(json_fields(inner, f"{prefix}{name}.") for name, inner in value.items()))
        case list():
            return set().union(*(json_fields(inner, prefix) for inner in value))
    return set()


def test_the_configuration_reference_is_what_the_models_say() -> None:
    generated = reference.reference()

    assert (ROOT / "docs" / "configuration.md").read_text() == generated, "regenerate it: make docs"
    for row in generated.splitlines():
        if row.startswith("| `"):
            assert not row.endswith("|  |"), f"no description: {row}"


def test_the_readme_promises_what_guarantees_says() -> None:
    readme, guarantees = (
        re.findall(r"(?:^> .*\n)+", (ROOT / name).read_text(), re.MULTILINE)
        for name in ("README.md", "docs/guarantees.md")
    )

    assert readme == guarantees[:1]


def test_the_picture_shows_what_the_live_view_prints() -> None:
    drawn = runpy.run_path(str(ROOT / "docs" / "live_view.py"))["console"]().export_svg(unique_id="view")

    assert _texts((ROOT / "docs" / "live-view.svg").read_text()) == _texts(drawn)[1:], "regenerate it: make docs"


def _texts(svg: str) -> list[str]:
    """The texts of a picture, without the title that rich gives a window."""
    return [text for text in re.findall(r"<text [^>]*>([^<]*)</text>", svg) if text.strip()]


def test_every_column_type_is_explained() -> None:
    assert set(get_args(ColumnType)) <= table_names("targets/postgres.md")


def test_every_protocol_of_a_target_is_explained() -> None:
    protocols = {
        name
        for name, kind in vars(contract).items()
        if getattr(kind, "__module__", "") == contract.__name__ and getattr(kind, "_is_protocol", False)
    }

    assert protocols - {"Target"} <= table_names("targets/own.md")
    methods = {name for name in vars(contract.Target) if not name.startswith("_")}
    assert methods <= {name.partition("(")[0] for name in table_names("targets/own.md")}


def test_every_message_in_troubleshooting_is_in_the_code() -> None:
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)

    assert len(rows) > 50
    for message in (message for row in rows for message in re.findall(r"`([^`]+)`", row)):
        assert is_said(message), message


def test_every_link_leads_somewhere() -> None:
    for path in DOCUMENTS:
        for link in re.findall(r"\]\(([^)]+)\)", path.read_text()):
            if link.startswith("https://"):
                continue
            file, _, anchor = link.partition("#")
            place = path.parent / file if file else path
            assert place.exists(), f"{path.name}: {link}"
            assert not anchor or anchor in anchors(place), f"{path.name}: {link}"


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", document.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_ci_runs_the_documented_commands() -> None:
    script = ROOT / ".ci" / "run"

    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    called = {word for line in script.read_text().splitlines() if "make " in line for word in line.split()}
    assert {"install", "lint", "types", "oldest", "test"} <= called
