"""The one scheduler: the seed picks which due step comes next, and when its answer arrives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from replicator.aws.client import Client
from replicator.engine.scheduler import StepResult
from tests.engine.virtual_scheduler import VirtualSteps
from tests.simulation.neighbors import client_of

if TYPE_CHECKING:
    from tests.simulation.world import Universe

LONGEST_ANSWER = 80  # turns that an answer may be on its way
LONGEST_NAP = 1.0  # seconds that pass at once when nothing is due


class SeededSteps(VirtualSteps):
    """``Scheduler`` that make each call at once; between two steps the world does its worst."""

    def __init__(self, universe: Universe, client: Client) -> None:
        super().__init__(client_of(universe, client))
        self._universe = universe
        self._when: dict[str, float] = {}
        self._made: list[tuple[int, StepResult]] = []
        self._turn = 0

    def again(self, name: str, rest: float = 0.0) -> None:
        self._when[name] = self._universe.clock.now + rest

    def clear(self) -> None:
        super().clear()
        self._when.clear()
        self._made.clear()

    def get(self, timeout: float) -> StepResult | None:
        universe = self._universe
        if timeout == 0.0 and universe.random.random() < universe.scenario.hasty:
            return None
        universe.happen()
        self._turn += 1
        now = universe.clock.now
        due = [name for name, at in self._when.items() if at <= now]
        if due:
            self._advance(due)
        elif not self._made:
            universe.clock.now += max(timeout, 0.01, min(self._soonest() - now, LONGEST_NAP))
        return self._arrived()

    def _soonest(self) -> float:
        return min(self._when.values(), default=0.0)

    def _advance(self, due: list[str]) -> None:
        chance, slow = self._universe.random, self._universe.slow
        name = due[int(chance.random() * len(due))]
        del self._when[name]
        late = int(LONGEST_ANSWER * chance.random()) if slow and chance.random() < slow else 0
        self._made.append((self._turn + late, self._step(name)))

    def _arrived(self) -> StepResult | None:
        arrived = [made for made in self._made if made[0] <= self._turn]
        if not arrived:
            return None
        made = arrived[int(self._universe.random.random() * len(arrived))]
        self._made.remove(made)
        self._universe.note("step", made[1].name, "ends" if made[1].ended else made[1].error or "")
        return made[1]
