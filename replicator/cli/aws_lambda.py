"""``replicator lambda``: what a function on AWS Lambda is deployed with."""

from __future__ import annotations

from pathlib import Path

import click

from replicator.cli.output import config_argument, json_option, note, put, say, say_lines

arch_option = click.option(
    "--arch", type=click.Choice(["x86_64", "arm64"]), default="x86_64", show_default=True, help="The function's."
)


@click.group(name="lambda")
def aws_lambda() -> None:
    """Package the function on AWS Lambda, and print its template.

    For a config with `engine: {type: lambda}`. Nothing is deployed: AWS' own tools do that.
    """


@aws_lambda.command
@config_argument
@click.option(
    "--out",
    type=click.Path(dir_okay=False),
    help="The file to write; by default function.zip, or NAME.zip of a target.",
)
@arch_option
@click.option(
    "--include", multiple=True, metavar="FILE", help="Another file of the config's folder, such as a CA certificate."
)
@click.option(
    "--requirement", multiple=True, metavar="NAME==VERSION", help="A package that the hook imports; may be repeated."
)
@json_option
def package(
    config: str,
    target: str | None,
    out: str | None,
    arch: str,
    include: tuple[str, ...],
    requirement: tuple[str, ...],
    as_json: bool,
) -> None:
    """Build the function's zip: replicator, what it depends on, the config and the hook.

    It is for the version of Python that runs this command. What it depends on is installed by pip, in the versions that
    are installed here, for Lambda's platform. The same versions and files give the same zip, byte for byte.
    """
    from replicator.operations import lambda_package as operation

    out = out or f"{target or 'function'}.zip"
    wanted = operation.Wanted(arch, include, requirement, target)
    built = operation.build(Path(config), wanted, Path(out), operation.install)
    if as_json:
        told = {"file": out, "size": built.size, "sha256": built.digest, "runtime": built.runtime}
        put({**told, "architecture": arch, "notes": built.notes})
        return
    for text in built.notes:
        note(f"note: {text}")
    say(f"{out}: {built.size / 1e6:.1f} MB for {built.runtime} on {arch}, sha256 {built.digest}")


@aws_lambda.command
@config_argument
@arch_option
@click.option("--keys-only", is_flag=True, help="The stream's view type is KEYS_ONLY.")
def template(config: str, target: str | None, arch: str, keys_only: bool) -> None:
    """Print a CloudFormation template of the function, its mapping, schedule, role and log group, as YAML.

    Contacts no server. What the config reads from the environment, and where the zip and the stream are, are
    parameters.
    """
    from replicator.operations import lambda_template as operation

    say_lines(operation.template(Path(config), arch, keys_only=keys_only, target=target))
