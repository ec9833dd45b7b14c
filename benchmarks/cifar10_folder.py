"""Write CIFAR-10's images from one .npz file into class folders, for scenes: train/CLASS/IMAGE, val/CLASS/IMAGE.

    python -m benchmarks.cifar10_folder cifar10.npz runs/cifar10
    python -m relabel reproduce --on photos --images runs/cifar10

The file holds bytes (uint8, all JPEG files one after the other), offsets (int64 [N + 1], where each begins), labels
(int [N]), test (bool [N]) and classes (texts [10]).
"""

import argparse
from pathlib import Path

import numpy as np

from utils.errors import UserError, exit_on_user_error

ARRAYS = ("bytes", "offsets", "labels", "test", "classes")
EXPECTED = f"expected the arrays {', '.join(ARRAYS)}. Fetch the file again."


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="write CIFAR-10's images from one .npz file into class folders")
    parser.add_argument("npz", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    with exit_on_user_error():
        count = write_folder(options.npz, options.out)
    print(f"{count:,} images: {options.out}")


def write_folder(npz: Path, out: Path) -> int:
    """Write every image unchanged; return their number.

    Raises:
        UserError: the arrays are not as expected, or a class cannot be the name of a folder.
    """
    try:
        with np.load(npz, allow_pickle=False) as arrays:
            content, offsets, labels, is_test, classes = (arrays[name] for name in ARRAYS)
        fits = len(offsets) == len(labels) + 1 == len(is_test) + 1 and offsets[0] == 0 and offsets[-1] == len(content)
        fits = fits and (np.diff(offsets) >= 0).all() and set(labels.tolist()) <= set(range(len(classes)))
    except Exception as error:  # damaged archives raise almost anything
        raise UserError(f"{npz} cannot be read ({type(error).__name__}: {error}); {EXPECTED}") from error
    if not fits:
        raise UserError(f"{npz}: its arrays do not fit each other; {EXPECTED}")
    for name in classes:
        if str(name) in ("", ".", "..") or not {"/", "\0"}.isdisjoint(str(name)):
            raise UserError(f"{npz}: found the class {str(name)!r}; expected a folder's name. Fetch the file again.")
    for folder in (out / split / str(name) for split in ("train", "val") for name in classes):
        if folder.is_symlink():
            raise UserError(
                f"{folder} is a link, through which images would be written elsewhere; expected a folder. Remove it."
            )
        folder.mkdir(parents=True, exist_ok=True)
    for number, (label, in_val) in enumerate(zip(labels, is_test, strict=True)):
        path = out / ("val" if in_val else "train") / str(classes[label]) / f"{number:05d}.jpg"
        path.write_bytes(content[offsets[number] : offsets[number + 1]].tobytes())
    return len(labels)


if __name__ == "__main__":
    main()
