"""Random numbers that belong to a key: the seed, what they are for, and where in the run they are used."""

import numpy as np

# What a stream of random numbers is for; two purposes never share a stream.
SAMPLE, ORDER, STEP, EXTRA_ORDER = range(4)


def keyed_rng(seed: int, purpose: int, first: int, second: int = 0) -> np.random.Generator:
    """The generator that belongs to these numbers and to nothing else: no state to keep, no order to respect.

    Philox is a cipher: seed and purpose are its key, (first, second) the upper half of its counter, so streams of
    different arguments never overlap.

    Args:
        seed: 0..2^64 - 1.
        purpose: SAMPLE (of an epoch and an image), ORDER (of an epoch), STEP (of a step and a rank), EXTRA_ORDER (of a
            pass over the extra images).
        first, second: 0..2^64 - 1.
    """
    key = np.array((seed, purpose), dtype=np.uint64)
    counter = np.array((0, 0, first, second), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
