"""Draw where the time of a training step on a GPU goes, ours and with the target as in 2021.

    python -m benchmarks.step_plot [--result JSON] [--out PNG]

From the JSON result of benchmarks.gpu_step or benchmarks.gpu.
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.gpu_step import AUGMENTATION, OURS, TARGET, TARGET_2021
from relabel.figures.colours import INK, PALETTE
from relabel.figures.panels import DPI, plain_axes, save

ROOT = Path(__file__).resolve().parents[1]
SIZE_INCHES = (7.3, 2.3)
BATCH = 256
NARROW_MS = 8.0  # of a part that is narrower than its text
NETWORK, LABELS, AUGMENTED = PALETTE[0], PALETTE[1], PALETTE[8]


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT / "benchmarks" / "results" / "gpu_step.json"
    parser.add_argument("--result", type=Path, default=default, help="JSON of gpu_step or gpu")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "step.png", help="the PNG to write")
    options = parser.parse_args()
    draw_step(options.result, options.out)


def draw_step(result: Path, out: Path) -> None:
    """Write a bar per way of making ReLabel's target, cut into the network, augmentation and the target.

    Args:
        result: JSON of benchmarks.gpu_step or benchmarks.gpu.
        out: the PNG to write; its folder must exist.
    """
    medians = {figure["what"]: figure["median"] for figure in json.loads(result.read_text())["figures"]}
    augmentation, target, target_2021 = (medians[f"part: {part}"] for part in (AUGMENTATION, TARGET, TARGET_2021))
    network = 1e3 * BATCH / medians[OURS[-1]] - augmentation - target
    bars = {
        "ours": [("network", network, NETWORK), ("augmentation", augmentation, AUGMENTED), ("target", target, LABELS)],
        # Its augmentation is done by the workers, so it is none of the step's time.
        "as in 2021": [("network", network, NETWORK), ("target", target_2021, LABELS)],
    }
    picture = Figure(figsize=SIZE_INCHES, layout="constrained", dpi=DPI)
    axes = picture.add_subplot()
    for row, parts in enumerate(bars.values()):
        left = 0.0
        narrow = []
        for name, ms, colour in parts:
            axes.barh(row, ms, left=left, height=0.5, color=colour, edgecolor="white")
            if ms < NARROW_MS:
                narrow.append(f"{name} {ms:.1f}")
            else:
                axes.text(left + ms / 2, row, f"{name} {ms:.1f}", color="white", ha="center", va="center", fontsize=10)
            left += ms
        axes.text(left + 1, row, ", ".join(narrow), color=INK, ha="left", va="center", fontsize=10)
    axes.set_yticks(range(len(bars)), list(bars))
    axes.invert_yaxis()
    axes.set_xlabel(f"ms per batch of {BATCH}", fontsize=10, color=INK)
    plain_axes(axes, "x")
    axes.tick_params(axis="y", labelcolor=INK)
    save(picture, out)
    print(f"written: {out}")


if __name__ == "__main__":
    main()
