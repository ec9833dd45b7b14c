"""CIFAR-10's photos from one .npz file into class folders, for scenes of photos: train/CLASS/IMAGE, val/CLASS/IMAGE.

    python -m benchmarks.cifar10_folder ../shared/data/cifar10_jpeg.npz runs/cifar10
    python -m relabel reproduce --pictures runs/cifar10 --out runs/photos --seeds 2

The file holds bytes (uint8, all JPEG files one after the other), offsets (int64 [N + 1], where each begins), labels
(int [N]), test (bool [N]) and classes (texts [10]).
"""

import argparse
from pathlib import Path

import numpy as np

from utils.errors import UserError, exit_on_user_error


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="CIFAR-10's photos from one .npz file into class folders")
    parser.add_argument("npz", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    with exit_on_user_error():
        count = write_folder(options.npz, options.out)
    print(f"{count:,} photos: {options.out}")


def write_folder(npz: Path, out: Path) -> int:
    """Write every photo as it is; returns how many. UserError where a class cannot be the name of a folder."""
    with np.load(npz, allow_pickle=False) as arrays:
        content, offsets = arrays["bytes"], arrays["offsets"]
        labels, is_test, classes = arrays["labels"], arrays["test"], arrays["classes"]
    for name in classes:
        if str(name) in ("", ".", "..") or not {"/", "\0"}.isdisjoint(str(name)):
            raise UserError(f"{npz}: found the class {str(name)!r}; expected a folder's name. Fetch the file again.")
    for split in ("train", "val"):
        for name in classes:
            (out / split / str(name)).mkdir(parents=True, exist_ok=True)
    for number, (label, in_val) in enumerate(zip(labels, is_test, strict=True)):
        path = out / ("val" if in_val else "train") / str(classes[label]) / f"{number:05d}.jpg"
        path.write_bytes(content[offsets[number] : offsets[number + 1]].tobytes())
    return len(labels)


if __name__ == "__main__":
    main()
