"""The minimal IAM policies for a config, from the table in ``replicator.aws.permissions``. Contacts no server."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from replicator.aws import boto
from replicator.aws.permissions import STATEMENTS, Needed
from replicator.config.engine import Lambda
from replicator.config.settings import STAND_IN, load_each_offline
from replicator.engine.generations import by_alias, replaced
from replicator.errors import ConfigError
from replicator.hooks import loading
from replicator.options import Access
from replicator.target.contract import UNKNOWN_KEYS, CallsAws

if TYPE_CHECKING:
    from replicator.config.settings import Config

_VERSION = "2012-10-17"


@dataclass(frozen=True, slots=True)
class PolicyContext:
    """What the config does not say. ``accounts``: by place, of tables that are named without their ARN.

    ``setup``: for the first run and ``check --create``, which create what is missing. ``verify``: for ``verify``, too.
    ``resync_keys``: for a resync of chosen items, whose keys a run looks up. ``strip``: for ``strip``, too.
    ``function``: for the function on AWS Lambda alone, which never scans.
    """

    accounts: Mapping[str, str] = field(default_factory=dict)
    keys_only: bool = False
    setup: bool = True
    verify: bool = False
    resync_keys: bool = False
    strip: bool = False
    function: bool = False


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose credentials make calls: those of a profile or the AWS chain, or a role that these assume."""

    profile: str | None
    role_arn: str | None = None

    @property
    def label(self) -> str:
        if self.role_arn is not None:
            return self.role_arn
        return "default" if self.profile is None else f"profile {self.profile}"


@dataclass(frozen=True, slots=True)
class Grant:
    """One action of one identity on one resource."""

    identity: Identity
    sid: str
    action: str
    resource: str


def policies(configs: Sequence[Config], at: PolicyContext) -> dict[str, dict[str, Any]]:
    """The policy of each identity of the configs, by its label: what a process that runs all of them needs."""
    granted = list(dict.fromkeys(grant for config in configs for grant in grants(config, at)))
    labels = dict.fromkeys(grant.identity for grant in granted)
    return {identity.label: _policy([g for g in granted if g.identity == identity]) for identity in labels}


def grants(config: Config, at: PolicyContext) -> Iterator[Grant]:
    """Everything the config's identities need, each action and resource once per statement."""
    needs = [n for n in needed(config, at) if at.setup or not n.only_for_setup]
    verifies = at.verify or config.verify is not None
    unasked = {"VerifyCopies": not verifies, "StripCopies": not at.strip, "RemoveIndices": config.replaces is None}
    needs = [_of_a_run(n, at) for n in needs if not unasked.get(n.sid)]
    for need in needs:
        resource = _resource(config, need, at)
        yield from (Grant(_identity(need.access), need.sid, action, resource) for action in need.actions)
    for access in _unique(need.access for need in needs if need.access.role_arn is not None):
        role = STATEMENTS["Role"].resource if access.role_arn == STAND_IN else str(access.role_arn)
        yield Grant(Identity(access.profile), "Role", "sts:AssumeRole", role)


def _of_a_run(need: Needed, at: PolicyContext) -> Needed:
    """A run that verifies looks for no single item, and the function on AWS Lambda scans nothing."""
    if need.sid == "Items" and at.function:
        return replace(need, without=need.without | {"dynamodb:Scan"})
    if need.sid != "VerifyCopies" or at.verify:
        return need
    return replace(need, without=need.without | {"dynamodb:Query"})


def needed(config: Config, at: PolicyContext) -> Iterator[Needed]:
    """The statements that the config needs, the source's first."""
    hook = None if config.transform is None else loading.load(config.transform, config.base)
    own_ids = hook is not None and hook.declared
    connector, keep_expired = config.target.connector, config.ttl_deletes == "ignore"
    others: Sequence[Needed] = []
    if isinstance(connector, CallsAws):
        tables = _with_both(config).target.wanted(UNKNOWN_KEYS, own_ids=own_ids)
        others = connector.permissions(config.target.options, tables, keep_expired=keep_expired)
    yield Needed("source", "Items", config.source)
    yield Needed("source", "Changes", config.source)
    if at.keys_only or at.verify or at.resync_keys or config.verify is not None or config.on_gap == "export":
        yield Needed("source", "LookUpsForKeysOnly", config.source)
    if config.exports:
        yield from _exported(config)
    if config.on_gap == "export":
        yield Needed("source", "SettingsOfSource", config.source)
    if isinstance(config.engine, Lambda) and config.engine.function is not None and not at.function:
        yield from _function(config.source, config.engine.function)
    single = [Needed("source", "SingleItems", config.source)] if own_ids else []
    theirs = [replace(n, access=config.source) if n.place == "source" else n for n in others]
    yield from {(n.place, n.sid, *n.names.items()): n for n in (*single, *theirs)}.values()
    if config.checkpoints is not None and config.checkpoints.type == "dynamodb":
        options: Any = config.checkpoints.options
        names = {"CHECKPOINTS": options.table}
        yield Needed("checkpoints", "Checkpoints", options, names)
        yield Needed("checkpoints", "CreateCheckpoints", options, names)


def _function(source: Access, name: str) -> Iterator[Needed]:
    """What ``check`` reads of the function, which belongs to the account that the credentials are of."""
    own = source.model_copy(update={"role_arn": None, "external_id": None})
    elsewhere = {"ACCOUNT": STAND_IN} if source.role_arn is not None else {}
    yield Needed("source", "Function", own, {"FUNCTION": name, **elsewhere})
    yield Needed("source", "Versions", own, {"FUNCTION": name, **elsewhere})
    yield Needed("source", "EventSourceMappings", own)
    yield Needed("source", "Schedules", own)


def _exported(config: Config) -> Iterator[Needed]:
    """What exports need. DynamoDB writes the files with the permissions of who requested them."""
    backfill = config.backfill
    if backfill.export is not None:
        yield Needed("source", "ExportProgress", config.source)
        writes = frozenset({"s3:PutObject", "s3:AbortMultipartUpload"})
        yield Needed("source", "ExportFiles", config.source, without=writes)
        yield Needed("source", "ExportBucket", config.source)
        return
    bucket = backfill.bucket or STAND_IN
    files = {"BUCKET": f"{bucket}/{backfill.prefix}" if backfill.prefix and bucket != STAND_IN else bucket}
    yield Needed("source", "Export", config.source)
    yield Needed("source", "ExportProgress", config.source)
    yield Needed("source", "ExportFiles", config.source, files)
    if backfill.bucket_owner is not None:
        yield Needed("source", "ExportFilesOfAnotherAccount", config.source, files)
    yield Needed("source", "ExportBucket", config.source, {"BUCKET": bucket})
    if backfill.kms_key is not None:
        yield Needed("source", "ExportKey", config.source, _key(backfill.kms_key))


def _key(kms_key: str) -> Mapping[str, str]:
    """What the key's placeholders stand for: by its ARN or id. Policies cannot name an alias."""
    *_, region, account, resource = ("", "", *kms_key.split(":"))[-3:] if ":" in kms_key else ("", "", kms_key)
    id = resource.removeprefix("key/")
    known = {"KEY": STAND_IN if id.startswith("alias/") else id}
    return known | ({"REGION": region, "ACCOUNT": account} if account else {})


def _with_both(config: Config) -> Config:
    """The config, with the other copy's tables beside its own if it is of a rebuild whose copies have names."""
    if config.replaces is None or not by_alias(config):
        return config
    try:
        old = replaced(config, lambda path, target: load_each_offline(path, target=target)[0])
    except ConfigError as e:
        raise ConfigError(
            *e.problems,
            f"replaces: a rebuild needs permission for the indices of both copies, and {config.replaces} names those "
            "of the old one: keep it beside this config, or leave out replaces: for the policy of the new copy alone",
        ) from e
    return replace(config, target=replace(config.target, beside=old.target))


def _resource(config: Config, need: Needed, at: PolicyContext) -> str:
    """The ARN of what the statement is about, with placeholders for what is unknown."""
    region, partition = boto.region_and_partition(need.access)
    names: dict[str, str | None] = {"ACCOUNT": _account(need, at), "REGION": region}
    source = config.source.table
    if source.startswith("arn:"):  # arn:aws:dynamodb:REGION:ACCOUNT:table/TABLE
        _, _, _, _, account, table = source.split(":", 5)
        names |= {"TABLE": table.partition("/")[2]}
        names |= {"ACCOUNT": account or names["ACCOUNT"]} if need.place == "source" else {}
    else:
        names |= {"TABLE": source}
    if need.statement.resource == "*":
        return "*"
    parts = need.statement.resource.split(":")
    parts[1] = partition
    return ":".join(_filled(part, {**names, **need.names}) for part in parts)


def _filled(part: str, names: Mapping[str, str | None]) -> str:
    """``part`` of an ARN with its placeholders replaced, except those that nothing but a stand-in is known for."""
    return "/".join(word if names.get(word) in (None, STAND_IN) else str(names[word]) for word in part.split("/"))


def _account(need: Needed, at: PolicyContext) -> str | None:
    role = (need.access.role_arn or "").split(":")  # arn:aws:iam::ACCOUNT:role/NAME
    return role[4] if len(role) > 5 else at.accounts.get(need.place)


def _identity(access: Access) -> Identity:
    return Identity(None, access.role_arn) if access.role_arn is not None else Identity(access.profile)


def _unique(accesses: Iterable[Access]) -> Sequence[Access]:
    return list({(access.profile, access.role_arn): access for access in accesses}.values())


def _policy(granted: Sequence[Grant]) -> dict[str, Any]:
    """A policy document: a statement per Sid, with its actions and resources; several, numbered, if the actions on its
    resources differ.
    """
    statements = []
    for sid in dict.fromkeys(grant.sid for grant in granted):
        actions_on: dict[str, list[str]] = {}
        for grant in granted:
            if grant.sid == sid:
                actions_on.setdefault(grant.resource, []).append(grant.action)
        together: dict[frozenset[str], list[str]] = {}
        for resource, actions in actions_on.items():
            together.setdefault(frozenset(actions), []).append(resource)
        for at, resources in enumerate(together.values(), 1):
            name = sid if at == 1 else f"{sid}{at}"
            actions = list(dict.fromkeys(actions_on[resources[0]]))
            statements.append({"Sid": name, "Effect": "Allow", "Action": actions, "Resource": resources})
    return {"Version": _VERSION, "Statement": statements}


def unknown(documents: Mapping[str, Any]) -> list[str]:
    """The placeholders that are left in policies: ACCOUNT, REGION, DOMAIN, …"""
    arns = [arn for document in documents.values() for s in document["Statement"] for arn in s["Resource"]]
    words = (word for arn in arns for word in arn.replace("/", ":").split(":"))
    return list(dict.fromkeys(word for word in words if word in _PLACEHOLDERS))


_PLACEHOLDER = re.compile(r"[A-Z]{3,}")
_PLACEHOLDERS = frozenset(word for s in STATEMENTS.values() for word in _PLACEHOLDER.findall(s.resource))


def for_principal(configs: Sequence[Config], at: PolicyContext, principal: str) -> dict[str, dict[str, Any]]:
    """What other accounts must attach so that ``principal`` has access: trust policies by role, and by source resource.

    A table of another account can be named in a config only as the source, by its ARN. So a target or a checkpoint
    table in another account needs a role.
    """
    granted = dict.fromkeys(g for config in configs for g in grants(config, at) if g.sid != "Role")
    needs = [need for config in configs for need in needed(config, at)]
    trusts = {str(need.access.role_arn): _trust(need.access, principal) for need in needs if need.access.role_arn}
    table = _table(configs[0])  # the source of all of them
    direct = [g for g in granted if g.identity.role_arn is None and _is_of_source(g, table)]
    resources = {
        resource: _resource_policy([g for g in direct if g.resource == resource], principal)
        for resource in dict.fromkeys(grant.resource for grant in direct)
    }
    if not trusts and not resources:
        raise ConfigError(
            "--principal: nothing in this config can be in another account: source.table is a name, not an ARN, and "
            "neither source, target nor checkpoints assume a role (role_arn)"
        )
    return {**trusts, **resources}


def _table(config: Config) -> str:
    """What the ARNs of the source and its stream start with; what no ARN starts with if the config has a name only."""
    return config.source.table if config.source.table.startswith("arn:") else "-"


def _is_of_source(grant: Grant, table: str) -> bool:
    """Whether it is about the source, a part of it, or the table of epochs in its account."""
    beside = grant.sid == "EpochsOfSource" and grant.resource.startswith(table.rpartition("/")[0] or table)
    return beside or grant.resource == table or grant.resource.startswith(f"{table}/")


def _trust(access: Access, principal: str) -> dict[str, Any]:
    statement: dict[str, Any] = {"Effect": "Allow", "Principal": {"AWS": principal}, "Action": "sts:AssumeRole"}
    if access.external_id is not None:
        statement["Condition"] = {"StringEquals": {"sts:ExternalId": access.external_id}}
    return {"Version": _VERSION, "Statement": [statement]}


def _resource_policy(granted: Sequence[Grant], principal: str) -> dict[str, Any]:
    """A resource-based policy; DynamoDB has one for each table and each stream."""
    policy = _policy(granted)
    for statement in policy["Statement"]:
        statement["Principal"] = {"AWS": principal}
    return policy
