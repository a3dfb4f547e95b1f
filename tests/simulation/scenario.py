"""What kind of pipeline a seed has, and how hard its world tries: everything is drawn, also how often what happens."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from replicator.testing.dynamodb import AWS, LOCAL
from replicator.testing.dynamodb.faults import Dialect
from replicator.testing.dynamodb.sequences import Numbering
from tests.simulation.hooks import HOOKS

RATES: Mapping[str, float] = {
    "write": 0.6,
    "expire": 0.03,
    "split": 0.03,
    "roll": 0.03,
    "storm": 0.0005,
    "throttle": 0.02,
    "outage": 0.003,
    "lie": 0.03,
    "blank": 0.02,
    "pause": 0.02,
    "skew": 0.005,
    "jump": 0.01,
    "trim": 0.006,
    "die": 0.015,
    "takeover": 0.006,
    "lost": 0.02,
    "unanswered": 0.02,
    "late": 0.01,
    "restart": 0.02,
    "resync": 0.004,
    "disable": 0.001,
    "recreate": 0.0005,
    "restore": 0.0015,
    "forget": 0.0007,
    "roll back": 0.0015,
    "rehook": 0.0015,
}
"""How often each act happens, a step, before the seed multiplies it."""

ODD_ANSWERS: Mapping[str, float] = {
    "distort": 0.02,
    "refuse filter": 0.005,
    "dawdle": 0.01,
}
"""The same for answers that only some endpoints give, and for targets that are slow.

Drawn from random streams of their own, act by act.
"""

PONDERING: Mapping[str, float] = {"ponder": 0.05}
"""The same for hooks that take long, in one seed of three."""

STRAINING: Mapping[str, float] = {"strain": 0.05}
"""The same for hooks that take too long now and then, in one seed of three of those in which hooks fail."""

SPOILING: Mapping[str, float] = {"spoil": 0.05}
"""The same for files of exports, where there are any."""

CLEANING: Mapping[str, float] = {"straggle": 0.02, "cut short": 0.005, "overtake": 0.01, "doze": 0.01}
"""The same for what happens in the middle of sweeps and purges, in one seed of three."""

REQUESTS: Mapping[str, float] = {"request a resync": 0.006, "request items": 0.03}
"""The same for commands that request a resync of a run that is up, or of the next one, in one seed of three."""

COMMANDS: Mapping[str, float] = {"slip in a command": 0.02, "retry at a start": 0.02, "retry with another hook": 0.01}
"""The same for commands with a wrong config, and beside a run that begins, in one seed of three."""

IDENTITIES: Mapping[str, float] = {"slip": 0.02, "drop": 0.003, "clone": 0.003, "seed": 0.001, "empty": 0.02}
"""The same for what happens to the ends of a copy, in one seed of three."""

REMOVALS: Mapping[str, float] = {"remove": 0.02}
"""The same for tables that are removed while a run writes to them, in one seed of twenty without transactions."""

PARKING: Mapping[str, float] = {
    "retry": 0.03,
    "give up": 0.015,
    "list": 0.005,
    "decide later": 0.01,
    "hammer": 0.01,
    "relent": 0.004,
    "fix hook": 0.004,
    "retry again": 0.02,
}
"""The same of what concerns parked changes; drawn only where something can be parked, from a source of its own."""

CROWDED: Mapping[str, float] = {
    "write": 0.05,
    "burst": 0.05,
    "pause": 0.05,
    "die": 0.005,
    "lost": 0.01,
    "late": 0.01,
    "restart": 0.03,
}
"""The acts of a world in which batches wait, come back, and are cut in another way."""

ONLY_WHERE_TRIMMED = ("jump", "trim")

LEAKING: Mapping[str, float] = {
    "write": 0.6,
    "leak": 0.05,
    "late": 0.05,
    "lost": 0.02,
    "abandon": 0.003,
    "die": 0.001,
    "restart": 0.02,
}
"""The acts of a world in which short runs follow each other for hours, and each loses a response."""

PESTERING: Mapping[str, float] = {"retry": 0.05, "give up": 0.003}
"""The same of people who retry every few minutes what the target refuses, in one of three such worlds."""

WIDENING: Mapping[str, float] = {
    "write": 0.6,
    "widen": 0.015,
    "split": 0.02,
    "roll": 0.02,
    "throttle": 0.01,
    "pause": 0.02,
    "die": 0.04,
    "takeover": 0.01,
    "lost": 0.03,
    "unanswered": 0.03,
    "late": 0.02,
    "restart": 0.02,
    "resync": 0.003,
}
"""The acts of a world in which the tables have columns, and get more of them."""

REPAIRING: Mapping[str, float] = {
    "write": 0.12,
    "burst": 0.003,
    "expire": 0.01,
    "damage": 0.15,
    "repair": 0.02,
    "stop repair": 0.003,
    "suspend repair": 0.02,
    "kill repair": 0.003,
    "split": 0.01,
    "roll": 0.02,
    "throttle": 0.01,
    "pause": 0.001,
    "die": 0.006,
    "takeover": 0.002,
    "lost": 0.01,
    "unanswered": 0.01,
    "late": 0.02,
    "restart": 0.02,
    "resync": 0.002,
}
"""The acts of a world in which others damage the copy, and people repair it beside the runs."""

MONTHS: Mapping[str, float] = {
    "write": 0.3,
    "expire": 0.02,
    "split": 0.01,
    "wither": 0.02,
    "absence": 0.04,
    "throttle": 0.01,
    "pause": 0.01,
    "skew": 0.003,
    "die": 0.02,
    "takeover": 0.004,
    "lost": 0.02,
    "unanswered": 0.02,
    "late": 0.005,
    "resync": 0.001,
}
"""The acts of a world in which days and months pass, and nothing is lost before its time."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One seed's pipeline and world.

    ``hook`` names one of HOOKS. ``index``: the target is without transactions, as search engines and DynamoDB are;
    ``overlaps``: it stores a batch while the next is encoded; ``refuses``: it does not take every document;
    ``at_commit``: what it refuses shows only at the commit, one write at a time;
    ``forgetful``: it keeps no delete in mind by itself. ``trims``: time passes beyond the retention of 24 hours.
    ``batch_rows``: changes that make a batch full; with the 2,000 of outside, the few pages here never do.
    ``keeps_expired``: what expires stays in the target (``ttl_deletes: ignore``).
    ``looked_up_bytes``: what makes a page of looked-up images; with the 1 MB of outside, the small items here never do.
    ``marks``: the tables mark documents instead of removing them (``deletes: mark``).
    ``months``: shards roll over every four hours, and runs stay away for hours; ``cron``: each run ends once it has
    caught up, and the next one begins minutes later. ``lingering``: how long empty shards stay listed, at most.
    ``exports``: items are copied from exports to S3 instead of scans; ``existing``: from one that people made earlier,
    until it is refused. ``gap_exports``: a gap is repaired from incremental exports (``on_gap: export``).
    ``piece``: how many documents are swept, or purged, at once. ``hasty``: chance that a batch goes out, or that its
    answer is there, before more is read. ``pace``: seconds a step takes at most. ``slow``: chance that an answer takes
    long. ``rates``: chance of each act, a step.
    """

    hook: str | None = None
    view: str = "NEW_AND_OLD_IMAGES"
    index: bool = False
    overlaps: bool = False
    refuses: bool = False
    at_commit: bool = False
    forgetful: bool = False
    trims: bool = False
    keeps_expired: bool = False
    columns: bool = False
    marks: bool = False
    months: bool = False
    cron: bool = False
    lingering: float = 0.0
    numbering: Numbering = field(default_factory=Numbering)
    keys: int = 6
    steps: int = 120
    shards: int = 1
    segments: int = 1
    exports: bool = False
    existing: bool = False
    gap_exports: bool = False
    records_a_page: int = 3
    items_a_page: int = 2
    batch_rows: int = 2000
    looked_up_bytes: int = 1 << 20
    piece: int = 2000
    dialect: Dialect = AWS
    rest: float = 1200.0
    pace: float = 0.1
    slow: float = 0.1
    hasty: float = 0.5
    rates: Mapping[str, float] = field(default_factory=lambda: RATES)

    @property
    def repairs_gaps(self) -> bool:
        """Whether gaps are repaired from exports: not where a shape has given the scenario a hook that cannot be."""
        own_ids = self.hook is not None and HOOKS[self.hook].own_ids
        return self.gap_exports and not own_ids and not self.keeps_expired


def draw(seed: int) -> Scenario:
    """The scenario of a seed. Swarm testing: some acts never happen in a seed, others often."""
    chance = random.Random(f"scenario {seed}")
    hook = chance.choice([None, *HOOKS])
    own_ids = hook is not None and HOOKS[hook].own_ids
    view = "NEW_AND_OLD_IMAGES" if own_ids or chance.random() < 0.7 else chance.choice(["NEW_IMAGE", "KEYS_ONLY"])
    if not own_ids and random.Random(f"keys only {seed}").random() < 0.15:
        view = "KEYS_ONLY"  # otherwise too rare: what is looked up and what was removed is decided there
    trims = chance.random() < 0.3
    rates = {}
    for what, rate in RATES.items():
        swung = rate * 10 ** chance.uniform(-1, 0.6) if chance.random() < 0.85 else 0.0
        if trims or what not in ONLY_WHERE_TRIMMED:
            rates[what] = min(swung, 1.0)
    rates |= {what: _swung(seed, what, rate) for what, rate in ODD_ANSWERS.items()}
    rates |= _in_one_of_three(seed, "identities", IDENTITIES)
    rates |= _in_one_of_three(seed, "cleaning", CLEANING)
    rates |= _in_one_of_three(seed, "commands", COMMANDS)
    rates |= _in_one_of_three(seed, "requests", REQUESTS)
    rates |= _in_one_of_three(seed, "pondering", PONDERING)
    if hook is not None and HOOKS[hook].poisons:
        rates |= _in_one_of_three(seed, "straining", STRAINING)
    exports = random.Random(f"files {seed}").random() < 0.12
    rates |= {what: _swung(seed, what, rate) for what, rate in SPOILING.items() if exports}
    drawn = Scenario(
        hook=hook,
        view=view,
        index=chance.random() < 0.5,
        overlaps=chance.random() < 0.5,
        refuses=chance.random() < 0.15,
        forgetful=chance.random() < 0.5,
        trims=trims,
        keeps_expired=random.Random(f"expired {seed}").random() < 0.1,
        marks=random.Random(f"marks {seed}").random() < 0.15,
        numbering=_numbering(chance),
        keys=int(2 * 12 ** chance.random()),
        steps=int(15 * 12 ** chance.random()),
        shards=chance.randrange(1, 4),
        segments=chance.randrange(1, 4),
        exports=exports,
        records_a_page=chance.choice([1, 3, 7]),
        items_a_page=chance.choice([1, 2, 5]),
        batch_rows=random.Random(f"batch {seed}").choice([1, 4, 10, 2000]),
        looked_up_bytes=random.Random(f"looked up {seed}").choice([1, 100, 1 << 20]),
        piece=random.Random(f"piece {seed}").choice([1, 3, 2000]),
        dialect=chance.choice([AWS, LOCAL]),
        pace=chance.choice([0.02, 0.1, 0.3, 2.0]),
        slow=chance.choice([0.0, 0.1, 0.3]),
        rates=rates,
    )
    drawn = removing(seed, parking(seed, drawn))
    chance = random.Random(f"crowd {seed}")
    if drawn.index and chance.random() < 0.2:
        return crowded(drawn, chance)
    leaks = random.Random(f"leaks {seed}")
    if drawn.index and leaks.random() < 0.1:
        return pestering(seed, leaking(drawn, leaks))
    widens = random.Random(f"widens {seed}")
    if not (hook is not None and HOOKS[hook].poisons) and widens.random() < 0.08:
        return widening(drawn, widens)
    repairs = random.Random(f"repairs {seed}")
    if repairs.random() < 0.06:
        return repairing(drawn, repairs)
    repaired = random.Random(f"gap exports {seed}").random() < 0.11
    drawn = replace(drawn, gap_exports=repaired and not (own_ids or drawn.keeps_expired))
    lives = _in_months(drawn, random.Random(f"a long life {seed}"))
    if lives.months:
        return replace(lives, rates={**lives.rates, "brink": _swung(seed, "brink", 0.02)})
    earlier = lives.exports and not (
        lives.trims or lives.keeps_expired or lives.gap_exports
    )  # what is trimmed too early is lost
    return replace(lives, existing=earlier and random.Random(f"existing {seed}").random() < 0.5)


def removing(seed: int, drawn: Scenario) -> Scenario:
    """The same scenario where the target notices, as Delta Lake does, that others put another table in its place."""
    chance = random.Random(f"tables removed {seed}")
    if not drawn.index or chance.random() >= 1 / 20:
        return drawn
    rates = {what: rate * 10 ** chance.uniform(-1, 0.6) for what, rate in REMOVALS.items()}
    return replace(drawn, rates={**drawn.rates, **rates})


def parking(seed: int, drawn: Scenario) -> Scenario:
    """The same scenario with what people do about parked changes, in half of those where something can be parked."""
    chance = random.Random(f"parking {seed}")
    refuses = drawn.refuses or chance.random() < 0.2
    poisons = drawn.hook is not None and HOOKS[drawn.hook].poisons
    at_commit = chance.random() < 0.5
    rates = dict(drawn.rates)
    if (refuses or poisons) and chance.random() < 0.5:
        for what, rate in PARKING.items():
            rates[what] = rate * 10 ** chance.uniform(-1, 0.6) if chance.random() < 0.85 else 0.0
    return replace(drawn, refuses=refuses, at_commit=at_commit, rates=rates)


def crowded(drawn: Scenario, chance: random.Random) -> Scenario:
    """Pages of several shards wait for a target without transactions that refuses some documents."""
    return replace(
        drawn,
        index=True,
        refuses=True,
        overlaps=chance.random() < 0.8,
        keys=chance.choice([15, 30]),
        steps=chance.choice([60, 120]),
        shards=chance.choice([2, 3]),
        records_a_page=chance.choice([1, 3, 7]),
        batch_rows=chance.choice([4, 10, 20]),
        hasty=chance.choice([0.1, 0.3, 0.5]),
        pace=2.0,
        rates={what: min(1.0, rate * 10 ** chance.uniform(-1, 0.6)) for what, rate in CROWDED.items()},
    )


def leaking(drawn: Scenario, chance: random.Random) -> Scenario:
    """Runs that end once they have caught up, at a target without transactions, lose a response each, for hours."""
    return replace(
        drawn,
        index=True,
        cron=True,
        trims=False,
        keys=chance.choice([2, 4, 8]),
        steps=600,
        rest=60.0,
        pace=chance.choice([2.0, 4.0]),
        rates={what: min(1.0, rate * 10 ** chance.uniform(-0.5, 0.5)) for what, rate in LEAKING.items()},
    )


def pestering(seed: int, drawn: Scenario) -> Scenario:
    """The same world with a target that refuses some documents, and people who retry them again and again."""
    rates = _in_one_of_three(seed, "pesters", PESTERING)
    return replace(drawn, refuses=True, rates={**drawn.rates, **rates}) if rates else drawn


def widening(drawn: Scenario, chance: random.Random) -> Scenario:
    """Tables of columns, to which people add one while nothing else changes, and runs that die."""
    rates = {what: min(1.0, rate * 10 ** chance.uniform(-0.5, 0.5)) for what, rate in WIDENING.items()}
    return replace(drawn, columns=True, marks=False, refuses=False, keeps_expired=False, trims=False, rates=rates)


def repairing(drawn: Scenario, chance: random.Random) -> Scenario:
    """A copy that others damage, and `verify --repair` beside runs that die, for minutes. Nothing is parked."""
    return replace(
        drawn,
        hook=chance.choice([None, "kept", "rekeyed", "fanned"]),
        view="NEW_AND_OLD_IMAGES",
        refuses=False,
        trims=False,
        keeps_expired=False,
        columns=False,
        keys=chance.choice([1, 3, 8, 20]),
        steps=400,
        pace=chance.choice([0.3, 1.0, 3.0]),
        rates={what: min(1.0, rate * 10 ** chance.uniform(-0.7, 0.5)) for what, rate in REPAIRING.items()},
    )


def _swung(seed: int, what: str, rate: float) -> float:
    chance = random.Random(f"rate of {what} {seed}")
    return min(1.0, rate * 10 ** chance.uniform(-1, 0.6)) if chance.random() < 0.5 else 0.0


def _in_one_of_three(seed: int, topic: str, rates: Mapping[str, float]) -> dict[str, float]:
    """Drawn apart, so that other draws are what they were."""
    chance = random.Random(f"{topic} {seed}")
    if chance.random() < 2 / 3:
        return {}
    return {what: rate * 10 ** chance.uniform(-1, 0.6) for what, rate in rates.items() if chance.random() < 0.7}


def _in_months(drawn: Scenario, chance: random.Random) -> Scenario:
    """One seed in eight lives for long."""
    if chance.random() >= 1 / 8:
        return drawn
    rates = {what: rate * 10 ** chance.uniform(-1, 0.6) for what, rate in MONTHS.items() if chance.random() < 0.85}
    return replace(
        drawn,
        months=True,
        trims=True,
        cron=chance.random() < 0.3,
        lingering=chance.choice([0.0, 3600.0, 12 * 3600.0]),
        keys=int(2 * 6 ** chance.random()),
        steps=int(40 * 6 ** chance.random()),
        records_a_page=chance.choice([3, 20]),
        pace=chance.choice([2.0, 20.0, 60.0]),
        rates=rates,
    )


def _numbering(chance: random.Random) -> Numbering:
    """Sequence numbers that rise along the stream, or only inside a shard; some become longer on the way."""
    longer = 10**21 - chance.randrange(1, 200_000)
    return chance.choice([Numbering(), Numbering(across_shards=False), Numbering(first=longer)])
