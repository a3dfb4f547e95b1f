"""``replicator policy``."""

from __future__ import annotations

import json
import re
from typing import Any

import click

from replicator.cli.output import config_argument, note, put_json
from replicator.errors import ConfigError

_PLACES = ("source", "target", "checkpoints")
_ACCOUNT = re.compile(rf"((?P<place>{'|'.join(_PLACES)})=)?(?P<id>[0-9]{{12}})")
_PRINCIPAL = re.compile(r"arn:aws[a-z-]*:(iam|sts)::[0-9]{12}:[A-Za-z0-9_+=,.@/-]+")


@click.command
@config_argument
@click.option(
    "--account",
    multiple=True,
    metavar="[PLACE=]ID",
    help="The account of tables named without their ARN; PLACE: only of source, target or checkpoints.",
)
@click.option("--keys-only", is_flag=True, help="The stream's view type is KEYS_ONLY.")
@click.option("--verify", "for_verify", is_flag=True, help="Include what `verify` needs.")
@click.option("--resync-keys", is_flag=True, help="Include what `resync --key` and `--keys` need.")
@click.option("--strip", "for_strip", is_flag=True, help="Include what `strip` needs.")
@click.option("--function", is_flag=True, help="Only what the function on AWS Lambda needs.")
@click.option("--no-setup", is_flag=True, help="Omit what only the first run needs, to create tables.")
@click.option("--identity", help="Only the policy of this identity: default, profile NAME, or the ARN of a role.")
@click.option(
    "--principal", metavar="ARN", help="What other accounts must attach so that this user or role has access."
)
def policy(
    config: str,
    target: str | None,
    account: tuple[str, ...],
    keys_only: bool,
    no_setup: bool,
    for_verify: bool,
    resync_keys: bool,
    for_strip: bool,
    function: bool,
    identity: str | None,
    principal: str | None,
) -> None:
    """Print the minimal IAM policy for a config, as JSON.

    Contacts no server. The policy is for all targets of the config together, or for --target. If the config has
    several identities (profiles, roles to assume), prints an object with the policy of each. With --principal, prints
    the trust policy of each role, and the resource-based policies of a source table that is named by its ARN, and of
    its streams.
    """
    from replicator.config import settings as configs
    from replicator.operations import policy as operation

    if principal is not None and _PRINCIPAL.fullmatch(principal) is None:
        raise ConfigError(
            f"--principal: {principal} must be the ARN of a user or role, arn:aws:iam::123456789012:role/NAME"
        )
    loaded, _ = configs.load_each_offline(config, target=target)
    setup = not no_setup and not function
    at = operation.PolicyContext(_accounts(account), keys_only, setup, for_verify, resync_keys, for_strip, function)
    if principal is not None:
        _print(operation.for_principal(loaded, at, principal))
        return
    documents = operation.policies(loaded, at)
    if identity is not None and identity not in documents:
        raise ConfigError(f"--identity: no identity {identity} in this config; it has {', '.join(documents)}")
    chosen = documents if identity is None else {identity: documents[identity]}
    for word in operation.unknown(chosen):
        note(f"note: the config does not say what {word} is; {_remedy(word)}")
    _print(chosen if len(chosen) > 1 else next(iter(chosen.values())))


def _accounts(given: tuple[str, ...]) -> dict[str, str]:
    """The account of each place; one that is given for a place takes precedence."""
    accounts: dict[str, str] = {}
    for text in sorted(given, key=lambda text: "=" in text):
        match = _ACCOUNT.fullmatch(text)
        if match is None:
            raise ConfigError(f"--account: {text} must be 12 digits, or e.g. target=123456789012")
        accounts |= dict.fromkeys([match["place"]] if match["place"] else _PLACES, match["id"])
    return accounts


def _remedy(word: str) -> str:
    return {
        "ACCOUNT": "give --account, or replace it",
        "REGION": "set source.region or AWS_REGION, or replace it",
    }.get(word, "replace it")


def _print(document: Any) -> None:
    put_json(json.dumps(document, indent=2))
