"""Wrong designs: each breaks one rule in the production code, and the simulation has to notice.

A mutant is a patch that a test applies and takes back, in the file that is named for what it gets wrong.
"""

from tests.simulation.mutants import (
    choosing,
    exporting,
    gaps,
    guarding,
    hooking,
    marking,
    reading,
    repairing,
    retaining,
    sharing,
    versions,
)
from tests.simulation.mutants.mutant import Mutant, among

MUTANTS = among(reading, versions, guarding, hooking, gaps, retaining, choosing, repairing, marking, exporting, sharing)

__all__ = ["MUTANTS", "Mutant"]
