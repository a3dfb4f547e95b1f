"""What a seed's world does, and when. A plan is drawn before anything runs, so that acts can be left out of it."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from tests.simulation.scenario import RATES, Scenario


@dataclass(frozen=True, slots=True)
class Act:
    """Something that happens at a step; ``luck``, two numbers between 0 and 1, decides the details."""

    at: int
    what: str
    luck: tuple[float, float]

    def pick(self, most: int) -> int:
        """One of 0 … ``most`` - 1."""
        return int(self.luck[0] * most)

    def between(self, least: float, most: float) -> float:
        return least + self.luck[1] * (most - least)


Plan = tuple[Act, ...]


def draw(seed: int, scenario: Scenario) -> Plan:
    """All acts of a seed, in order."""
    usual = random.Random(f"plan {seed}")
    acts = []
    for what, rate in scenario.rates.items():
        chance = usual if what in RATES else random.Random(f"plan of {what} {seed}")
        at = _wait(chance, rate)
        while at <= scenario.steps:
            acts.append(Act(int(at), what, (chance.random(), chance.random())))
            at += _wait(chance, rate)
    return tuple(sorted(acts, key=lambda act: act.at))


def _wait(chance: random.Random, rate: float) -> float:
    """Steps until something that has a chance of ``rate`` each step happens next."""
    if rate <= 0.0:
        return math.inf
    if rate >= 1.0:
        return 1
    return 1 + int(math.log(1.0 - chance.random()) / math.log(1.0 - rate))
