"""Random generators that depend only on a key: the seed, a purpose, and a position in the run."""

import numpy as np

# Purposes of random numbers; no two purposes share a stream.
SAMPLE, ORDER, STEP, EXTRA_ORDER = range(4)


def keyed_rng(seed: int, purpose: int, first: int, second: int = 0) -> np.random.Generator:
    """Return the generator of a key. There is no other state, so the order of calls does not matter.

    Philox encrypts a counter: seed and purpose are its key, (first, second) the upper half of its counter, so streams
    with different arguments never overlap.

    Args:
        seed: 0..2^64 - 1.
        purpose: SAMPLE (of an epoch and an image), ORDER (of an epoch), STEP (of a step and a rank), EXTRA_ORDER (of a
            pass over the extra images).
        first, second: 0..2^64 - 1.
    """
    key = np.array((seed, purpose), dtype=np.uint64)
    counter = np.array((0, 0, first, second), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
