"""Builds the zip of the function on AWS Lambda: replicator, what it depends on, the config and the hook.

What is installed is in a folder ``site-packages``, as on any machine: a hook's fingerprint has the files beside it that
it imports, and none of installed packages, so in one folder with them it would be another hook.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath

from replicator import __version__
from replicator.config.engine import Lambda
from replicator.config.settings import Config, load_offline
from replicator.config.targets import TARGETS
from replicator.config.yaml_file import PathInFile, placeholders, texts
from replicator.engine.aws_lambda import DEFAULT
from replicator.errors import ConfigError
from replicator.hooks.loading import load
from replicator.hooks.sources import imported
from replicator.options import NamesFiles

LIMIT = 50_000_000  # bytes of a zip that Lambda accepts in a request
UNZIPPED = 250_000_000  # bytes that a function may have
OWN = ("replicator", "connectors")
GLIBC = {11: 26, 12: 34, 13: 34, 14: 34}  # minor versions of it, of Lambda's runtimes for Python 3
OLDEST = 17  # of the versions of glibc that wheels are built for
MACHINES = {"x86_64": "x86_64", "arm64": "aarch64"}
TASK_ROOT = "/var/task"  # where Lambda unpacks the zip
VOLUMES = "/mnt"
FOLDERS = ("/opt", VOLUMES, "/etc", "/usr", "/var/runtime")  # of a function: layers, volumes, and the system
HANDLER = "lambda_function.lambda_handler"  # what Lambda calls unless it is told something else
LIBRARIES = "site-packages"
RELATIVE = (".ca_certs", ".client_cert")  # options with the name of a file that is relative to the config
_ENTRY_POINT = '''"""What AWS Lambda calls. Everything that is installed is in the folder beside this file."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "site-packages"))

{handler}
'''
_HANDLER = "from replicator.engine.aws_lambda import handler as lambda_handler"
_HANDLER_FOR = """from replicator.engine.aws_lambda import packaged_for

lambda_handler = packaged_for("{target}")"""
_PASSWORD = re.compile(r"://[^/@:]*:([^/@]+)@|(?:^|[?&\s])(?:ssl)?password\s*=\s*([^&\s]+)")
SECRETS = ("password", "sentinel_password", "api_key", "secret", "headers")
"""The options of targets and stores that are secrets, or may be, beside those with a URL."""

HARMLESS = ("accept", "accept-encoding", "cache-control", "content-type", "user-agent")
"""Headers that are no secrets."""

_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Wanted:
    """``include``: further files of the config's folder. ``requirements``: further packages, for the hook.

    ``target``: the name of the config's target, if that has one.
    """

    architecture: str = "x86_64"
    include: Sequence[str] = ()
    requirements: Sequence[str] = ()
    target: str | None = None


@dataclass(frozen=True, slots=True)
class Requirements:
    """What pip installs: ``names``, in the versions of ``constraints``, for one of the ``platforms``."""

    names: Sequence[str]
    constraints: Sequence[str]
    platforms: Sequence[str]


@dataclass(frozen=True, slots=True)
class Package:
    """A zip that was built. ``notes``: a sentence for each import that the function might miss."""

    size: int
    digest: str
    runtime: str
    notes: Sequence[str] = ()


Install = Callable[[Requirements, Path], None]


def loaded(path: Path, target: str | None = None) -> Config:
    """The config, which must be one that a function can have."""
    config, _ = load_offline(path, target=target)
    if not isinstance(config.engine, Lambda):
        raise ConfigError(f"{path}: engine.type must be lambda for a function on AWS Lambda")
    if unusable := next(unusable_options(config), None):
        raise ConfigError(f"{path}: {unusable[0]}: {unusable[1]}")
    return config


def unusable_options(config: Config) -> Iterator[tuple[str, str]]:
    """The options that cannot work in a function, and why. Files: those that the config itself names."""
    checkpoints = None if config.checkpoints is None else config.checkpoints.options
    for section, options in (
        ("source", config.source),
        ("target", config.target.options),
        ("checkpoints", checkpoints),
    ):
        for key, access in ((section, options), (f"{section}.aws", getattr(options, "aws", None))):
            if getattr(access, "profile", None) is not None:
                why = "a function has no profiles, but the permissions of its role: leave it out, or set "
                yield f"{key}.profile", f"{why}{key}.role_arn"
    for text, key, path in _named_files(config):
        if "${" not in text and (why := _out_of_reach(key, path)):
            yield key, why


def runtime(minor: int = sys.version_info.minor) -> str:
    """Lambda's runtime for this version of Python."""
    if minor not in GLIBC:
        offered = ", ".join(f"3.{known}" for known in GLIBC)
        raise ConfigError(f"this is Python 3.{minor}, and Lambda offers {offered}: run this command with one of them")
    return f"python3.{minor}"


def build(path: Path, wanted: Wanted, out: Path, install: Install) -> Package:
    """Write the zip. ConfigError if something cannot be part of it, or it is too large; then no file is written."""
    name = runtime()
    config = loaded(path, wanted.target)
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"--out: no such folder: {out.parent}")
    _check_secrets(path)
    hook = _hook_files(config, wanted)
    included = _included(config, wanted.include)
    _check_files(config, included)
    files = [*hook, *included]
    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder) / "stage"
        libraries = stage / LIBRARIES
        libraries.mkdir(parents=True)
        install(requirements(_extras(config), wanted), libraries)
        _copy_own(libraries)
        (stage / "lambda_function.py").write_text(_entry_point(config.target_name))
        _copy_files(config, files, stage)
        notes = _check_imports(hook, stage)
        _compile(stage)
        zipped = Path(folder) / "function.zip"
        _zip(stage, zipped)
        _check_sizes(stage, zipped)
        body = zipped.read_bytes()
        shutil.move(zipped, out)
    return Package(len(body), hashlib.sha256(body).hexdigest(), name, notes)


def placeholders_of(config: Config) -> Sequence[str]:
    """What is between the braces of each placeholder of the config, but for those of its other targets."""
    own = (TARGETS, config.target_name)
    return placeholders(config.path, lambda place: place[:1] != own[:1] or place[:2] == own)


def _entry_point(target: str | None) -> str:
    """The module that Lambda imports; it says which of the config's targets the function is for."""
    return _ENTRY_POINT.format(handler=_HANDLER if target is None else _HANDLER_FOR.format(target=target))


def _extras(config: Config) -> Sequence[str]:
    """Those of the target and of the store of the checkpoints."""
    return [config.target.type, *([] if config.checkpoints is None else [config.checkpoints.type])]


def requirements(extras: Sequence[str], wanted: Wanted, minor: int = sys.version_info.minor) -> Requirements:
    """What replicator with these extras depends on, in the versions that are installed here."""
    names = [*wanted.requirements]
    for line in metadata.requires("replicator") or ():
        requirement, _, marker = line.partition(";")
        if "extra" not in marker:
            names.append(line)
        elif any(f"'{extra}'" in marker.replace('"', "'") for extra in extras):
            names.append(requirement.strip())
    installed = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    pins = sorted(f"{name}=={version}" for name, version in installed.items() if "+" not in version)
    machine = MACHINES[wanted.architecture]
    tags = [f"manylinux_2_{glibc}_{machine}" for glibc in range(GLIBC[minor], OLDEST - 1, -1)]
    own = [pin for pin in pins if not pin.startswith("replicator==")]
    return Requirements(list(dict.fromkeys(names)), own, [*tags, f"manylinux2014_{machine}"])


def install(wanted: Requirements, folder: Path) -> None:
    """Install wheels into a folder, by pip. ConfigError says why it cannot."""
    constraints = folder.parent.with_name("constraints.txt")
    constraints.write_text("\n".join(wanted.constraints) + "\n")
    platforms = [word for tag in wanted.platforms for word in ("--platform", tag)]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    command += ["--only-binary", ":all:", "--implementation", "cp", *platforms, "--constraint", str(constraints)]
    done = subprocess.run([*command, "--target", str(folder), *wanted.names], capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in said if line.startswith("ERROR")), said[-1] if said else "it says nothing")
        raise ConfigError(f"pip cannot install what the function depends on: {reason.removeprefix('ERROR: ')}")


def _check_secrets(path: Path) -> None:
    """ConfigError if the config has a password or another secret: everyone who may read the zip would see it.

    All of it is in the zip, so that it has the same lines: also the sections of other targets.
    """
    for place, text in texts(path):
        passwords = [found[1] or found[2] for found in _PASSWORD.finditer(text)]
        if _is_secret(place) and text:
            passwords.append(text)
        if any("${" not in password for password in passwords):
            what = "may be a secret" if "headers" in place else "has a password in it"
            raise ConfigError(
                f"{path}: {'.'.join(map(str, place))} {what}, which would be in the zip: use a variable of the "
                "environment, such as ${POSTGRES_PASSWORD}"
            )


def _is_secret(place: PathInFile) -> bool:
    """Whether a text of the config is a secret option of a target or store, or part of one."""
    section = place[2:] if place[0] == TARGETS else place[1:]
    if section[:1] == ("headers",) and str(section[-1]).lower() in HARMLESS:
        return False
    return place[0] in (TARGETS, "target", "checkpoints") and section[:1] != () and section[0] in SECRETS


def _hook_files(config: Config, wanted: Wanted) -> list[Path]:
    """The hook's file, and all beside it that it imports."""
    if config.transform is None:
        return []
    load(config.transform, config.base)  # whatever is wrong with it is said here, not by the function
    place, _, _ = config.transform.partition(":")
    if place.endswith(".py"):
        path = (config.base / place).resolve()
        return [path, *imported(path, path.parent)]
    found = importlib.util.find_spec(place)
    path = Path(str(found.origin if found is not None else None)).resolve()
    if not path.is_relative_to(config.base):
        if not wanted.requirements:
            raise ConfigError(f"transform: {place} is installed, not in {config.base}: name its package, --requirement")
        return []
    root = config.base / place.split(".")[0]
    packages = [folder / "__init__.py" for folder in path.parents if folder.is_relative_to(root)]
    own = [path, *imported(path, config.base), *(file for file in packages if file.is_file())]
    return list(dict.fromkeys(own))


def _included(config: Config, names: Sequence[str]) -> list[Path]:
    """Files that are named. ConfigError if one is missing, or the config reads another one: it may be a secret."""
    files = [(config.base / name).resolve() for name in names]
    if missing := next((file for file in files if not file.is_file()), None):
        raise ConfigError(f"--include: no such file: {missing}")
    read = [name.removeprefix("file:") for name in placeholders_of(config) if name.startswith("file:")]
    for name in read:
        if (config.base / name).resolve() not in files:
            raise ConfigError(
                f"the config reads the file {name}, which the function would not have: use a variable of the "
                f"environment, or add --include {name} to put it into the zip"
            )
    return files


def _check_files(config: Config, included: Sequence[Path]) -> None:
    """ConfigError if a file that the function reads as it connects is neither in the zip nor in a layer or volume."""
    for text, key, path in _named_files(config):
        why = _out_of_reach(key, path) or _left_out(path, config, included)
        if why and "${" in text:  # the value here may be of this machine, or none at all
            raise ConfigError(
                f"{key}: the file is named by a variable ({text}): set that to the function's value while you package, "
                "or write the file's name"
            )
        if why:
            raise ConfigError(f"{key}: {why}")


def _left_out(path: str, config: Config, included: Sequence[Path]) -> str:
    """Why the file at ``path`` is not in the package, if it should be; else ""."""
    there = PurePosixPath(TASK_ROOT, path)
    if not there.is_relative_to(TASK_ROOT):
        return ""
    name = there.relative_to(TASK_ROOT)
    is_in = (config.base / name).resolve() in included
    return "" if is_in else f"the function would not have the file {path}: add --include {name}"


def _named_files(config: Config) -> Iterator[tuple[str, str, str]]:
    """Each file that the target and the checkpoints name: the option as it is written, its section and key, and the
    path, relative to the package if the file is in it.
    """
    for name, section in (("target", config.target), ("checkpoints", config.checkpoints)):
        if section is not None and isinstance(section.options, NamesFiles) and (named := section.options.files()):
            written = dict(texts(config.path))
            for key, path in named:
                text, base = _text(written, config, name, key.partition(":")[0]), Path(os.path.normpath(config.base))
                own = Path(os.path.normpath(path))
                relative = "${" in text or own == Path(os.path.normpath(config.base / text))
                if relative and not Path(text).is_absolute() and own.is_relative_to(base):
                    path = str(own.relative_to(base))
                yield text, f"{name}.{key}", path


def _text(written: Mapping[PathInFile, str], config: Config, section: str, key: str) -> str:
    """An option of a section as it is written, with its placeholders."""
    if config.target_name is not None:
        own = (TARGETS, config.target_name, *((section,) if section != "target" else ()), key)
        return written.get(own) or written.get((section, key), "")
    return written.get((section, key), "")


def _out_of_reach(key: str, path: str) -> str:
    """Why a function cannot read the file at ``path``, as the config names it; "" if it can, perhaps once it is in the
    package.
    """
    there = PurePosixPath(TASK_ROOT, path)
    if key.endswith(".client_key") and not there.is_relative_to(VOLUMES):
        return (
            "in a zip or a layer, everyone who may read that would have the private key, and no file of it is its "
            f"owner's alone: put it on a volume, under {VOLUMES}, or use another login"
        )
    if there.is_relative_to(TASK_ROOT) or any(there.is_relative_to(folder) for folder in FOLDERS):
        return ""
    name = there.name if key.endswith(RELATIVE) else f"{TASK_ROOT}/{there.name}"
    return (
        f"the function would not have the file {path}: put it into the config's folder, add --include {there.name}, "
        f"and name it {name}"
    )


def _copy_own(stage: Path) -> None:
    """This installation's replicator, and what its connectors are found by."""
    for name in OWN:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        for folder in spec.submodule_search_locations or ():
            shutil.copytree(folder, stage / name, ignore=shutil.ignore_patterns("__pycache__", "testing"))
    distribution = metadata.distribution("replicator")
    info = stage / f"replicator-{__version__}.dist-info"
    info.mkdir()
    for file in ("METADATA", "entry_points.txt"):
        (info / file).write_text(distribution.read_text(file) or "")


def _copy_files(config: Config, files: Sequence[Path], stage: Path) -> None:
    shutil.copyfile(config.path, stage / DEFAULT)
    for file in dict.fromkeys(files):
        if not file.is_relative_to(config.base):
            raise ConfigError(f"{file} is not in the config's folder, {config.base}: it would not be found there")
        place = stage / file.relative_to(config.base)
        if place.exists():
            raise ConfigError(f"{file}: the package has a file of that name for AWS Lambda: rename it")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)


def _check_imports(files: Sequence[Path], stage: Path) -> Sequence[str]:
    """ConfigError if a file of the hook needs a package as it is imported, and the function would not have it.

    Returns a sentence for each other import of a missing package: the hook may never come to it, or a layer has it.
    """
    here = [path.name.split(".")[0] for folder in (stage, stage / LIBRARIES) for path in folder.iterdir()]
    known = {*sys.stdlib_module_names, *here}
    notes: list[str] = []
    for file in files:
        for name, nested in _imported_names(file):
            if name in known or (file.parent / f"{name}.py").is_file() or (file.parent / name).is_dir():
                continue
            if not nested:
                raise ConfigError(
                    f"{file.name} imports {name}, which the function would not have: name the package that has it, "
                    "--requirement NAME==VERSION"
                )
            notes.append(
                f"{file.name} imports {name} in a function or a block, and the package does not have it: unless a "
                "layer has it, or that code never runs there, name the package that has it, --requirement "
                "NAME==VERSION; an item whose hook cannot import it is parked"
            )
    return list(dict.fromkeys(notes))


def _imported_names(file: Path) -> Iterator[tuple[str, bool]]:
    """The top-level name of each import, and whether it is in a function or a block, which may never run.

    None of a try or a suppress, which handle a missing one, nor of a module's own ifs, and ifs about types or versions.
    """
    for node, nested in _imports(ast.parse(file.read_bytes()).body):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], nested) for alias in node.names)
        elif node.level == 0 and node.module is not None:
            yield node.module.split(".")[0], nested


def _imports(nodes: Iterable[ast.AST], nested: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """``nested``: the nodes are in a function or a block."""
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, nested
        elif isinstance(node, ast.expr | ast.Try | ast.TryStar) or _suppresses(node):
            continue
        elif not (isinstance(node, ast.If) and (not nested or _is_of_environment(node.test))):
            yield from _imports(ast.iter_child_nodes(node), True)


def _suppresses(node: ast.AST) -> bool:
    """Whether it is ``with suppress(…)``."""
    if not isinstance(node, ast.With):
        return False
    called = [item.context_expr.func for item in node.items if isinstance(item.context_expr, ast.Call)]
    return "suppress" in [getattr(function, "attr", getattr(function, "id", "")) for function in called]


def _is_of_environment(test: ast.expr) -> bool:
    """Whether a condition is about types, or the version of Python: the package is not what it decides about."""
    words = [node.id if isinstance(node, ast.Name) else getattr(node, "attr", "") for node in ast.walk(test)]
    return not {"TYPE_CHECKING", "version_info", "platform"}.isdisjoint(words)


def _compile(stage: Path) -> None:
    """Compile all modules, which Lambda's file system keeps a function from doing. Another process: the same bytes."""
    for record in stage.glob(f"{LIBRARIES}/*.dist-info/RECORD"):
        record.unlink()
    shutil.rmtree(stage / LIBRARIES / "bin", ignore_errors=True)
    options = ["-q", "-q", "--invalidation-mode", "unchecked-hash", "-s", str(stage), "-p", TASK_ROOT, str(stage)]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    subprocess.run([sys.executable, "-m", "compileall", *options], env=environment, capture_output=True)


def _zip(stage: Path, out: Path) -> None:
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(path for path in stage.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(stage).as_posix(), _EPOCH)
            entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o100755 << 16
            archive.writestr(entry, path.read_bytes())


def _check_sizes(stage: Path, zipped: Path) -> None:
    sizes: dict[str, int] = {}
    for path in stage.rglob("*"):
        if path.is_file():
            parts = path.relative_to(stage).parts
            top = parts[1] if parts[0] == LIBRARIES else parts[0]
            sizes[top] = sizes.get(top, 0) + path.stat().st_size
    size, unzipped = zipped.stat().st_size, sum(sizes.values())
    if size <= LIMIT and unzipped <= UNZIPPED:
        return
    largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
    raise ConfigError(
        f"the zip has {size / 1e6:.1f} MB, unpacked {unzipped / 1e6:.0f} MB; Lambda accepts {LIMIT / 1e6:.0f} and "
        f"{UNZIPPED / 1e6:.0f}. The largest parts: " + ", ".join(f"{n} ({sizes[n] / 1e6:.0f} MB)" for n in largest)
    )
