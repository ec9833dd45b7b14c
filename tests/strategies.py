"""What property-based tests draw: sides of boxes where arithmetic is hard, label maps, names that files can have."""

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

# For cases that write files or read whole configs: fewer of them.
FEW = settings(max_examples=max(1, settings().max_examples // 8))

# Fractions of an image: of whole pixels or cells, at the borders and beside them, beyond what float32 tells apart.
FRACTIONS = (
    st.builds(lambda a, b: min(a, b) / max(a, b), st.integers(0, 600), st.integers(1, 600))
    | st.floats(0, 1)
    | st.sampled_from([0.0, 1.0, 0.5, 5e-324, 1e-45, 1e-9, 0.5 + 1e-12, 1 - 2**-24, 1 - 2**-53])
)
SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def box_lists(draw: st.DrawFn, count: int) -> Tensor:
    """float32 [count, 4]; left, top, right, bottom, also without width or height."""
    sides = [sorted((draw(FRACTIONS), draw(FRACTIONS))) for _ in range(2 * count)]
    return torch.tensor(sides).view(count, 2, 2).transpose(1, 2).reshape(count, 4).float()


@st.composite
def map_batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, int]:
    """Scores and classes [2, k, h, w] of any size of logits, many of them equal; boxes; K, up to 21,000."""
    k, h, w = draw(st.integers(1, 6)), draw(st.integers(1, 7)), draw(st.integers(1, 7))
    num_classes = draw(st.one_of(*[st.integers(k, 60)] * 4, st.sampled_from([1000, 21_000])))
    scale = draw(st.sampled_from([0.0, 1e-6, 1.0, 12.0, 1000.0, 65_504.0]))
    rng = np.random.default_rng(draw(SEEDS))
    levels = rng.integers(-4, 5, (2, k, h, w)) / 4  # few, so that many are equal
    scores = np.where(rng.random((2, k, h, w)) < 0.5, levels, rng.uniform(-1, 1, (2, k, h, w))) * scale
    first, stride = rng.integers(0, num_classes, (2, 1, h, w)), rng.integers(1, num_classes // k + 1)
    classes = (first + stride * np.arange(k)[:, None, None]) % num_classes  # no class twice in a cell
    kind = draw(st.sampled_from([torch.float16, torch.float32]))
    return torch.from_numpy(scores).to(kind), torch.from_numpy(classes), draw(box_lists(2)), num_classes


# Whatever Linux takes for a name: not "/", not NUL, at most 255 bytes; also bytes that are no UTF-8 (as surrogates).
_LETTERS = st.characters(exclude_characters="/\0", exclude_categories=["Cs"]) | st.sampled_from(
    " .-_'\"\\\n\udce9\udcff"
)


def names(bytes_after: int = 0) -> st.SearchStrategy[str]:
    """Names that can be seen, with room for an extension."""
    most = 255 - bytes_after
    texts = st.text(_LETTERS, min_size=1, max_size=12) | st.sampled_from(["x" * most, "日" * (most // 3), "n01440764"])
    return texts.filter(lambda name: not name.startswith("."))


KEYS = st.builds("/".join, st.tuples(names(), names(bytes_after=5)))  # CLASS/STEM of an image.jpeg
KEY_LISTS = st.lists(KEYS, min_size=1, max_size=5, unique=True)
