"""CIFAR-10's photos from one .npz file into class folders, for scenes of photos: train/CLASS/IMAGE, val/CLASS/IMAGE.

    python -m benchmarks.cifar10_folder ../shared/data/cifar10_jpeg.npz runs/cifar10
    python -m relabel reproduce --pictures runs/cifar10 --out runs/photos --seeds 2

The file holds bytes (uint8, all JPEG files one after the other), offsets (int64 [N + 1], where each begins), labels
(int [N]), test (bool [N]) and classes (texts [10]).
"""

import argparse
from pathlib import Path

import numpy as np


def main() -> None:
    """Write every photo as it is."""
    parser = argparse.ArgumentParser(description="CIFAR-10's photos from one .npz file into class folders")
    parser.add_argument("npz", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    with np.load(options.npz, allow_pickle=False) as arrays:
        content, offsets = arrays["bytes"], arrays["offsets"]
        labels, is_test, classes = arrays["labels"], arrays["test"], arrays["classes"]
    for split in ("train", "val"):
        for name in classes:
            (options.out / split / str(name)).mkdir(parents=True, exist_ok=True)
    for number, (label, in_val) in enumerate(zip(labels, is_test, strict=True)):
        path = options.out / ("val" if in_val else "train") / str(classes[label]) / f"{number:05d}.jpg"
        path.write_bytes(content[offsets[number] : offsets[number + 1]].tobytes())
    print(f"{len(labels) - is_test.sum():,} training and {is_test.sum():,} validation photos: {options.out}")


if __name__ == "__main__":
    main()
