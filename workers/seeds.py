"""Seeds of the pieces of a model, of streams of data: one run's seed makes one of each."""

import numpy as np


def seed_of(run_seed: int, part: int) -> int:
    """A seed that nothing else of the run has; ``part`` tells its pieces apart."""
    return int(np.random.SeedSequence((run_seed, part)).generate_state(1, np.uint64)[0])
