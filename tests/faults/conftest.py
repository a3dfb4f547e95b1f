from tests.faults.world import faults as faults
