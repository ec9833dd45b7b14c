"""Two checkpoints compared on the same images: values by hand, intervals against plain resampling, files checked."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from relabel import __main__ as tools
from relabel.evaluation.compare import RESAMPLES, compare, paired_difference, verdict
from relabel.evaluation.predictions import SavedPredictions, read_predictions
from tests.conftest import Flags
from tests.relabel.training.test_run import start
from utils.errors import UserError

HEADER = "image,label,top1,top1_probability,label_probability,top5"
# The first is right on a, b and d, the second on a, c, d and e; of the own labels, c has none.
FIRST = [
    "a/1.JPEG,a,a,0.9,0.9,a/b,1",
    "b/1.JPEG,b,b,0.6,0.6,b/a,1",
    "c/1.JPEG,c,a,0.5,0.1,a/b,",
    "d/1.JPEG,d,d,1,1,d,1",
    "e/1.JPEG,e,a,0.4,0.2,a/e,0",
]
SECOND = [
    "a/1.JPEG,a,a,0.8,0.8,a/b,1",
    "b/1.JPEG,b,c,0.7,0.1,c/a,1",
    "c/1.JPEG,c,c,0.9,0.9,c/b,",
    "d/1.JPEG,d,d,1,1,d,1",
    "e/1.JPEG,e,e,0.4,0.4,e/a,1",
]


def save(path: Path, rows: list[str], header: str = f"{HEADER},in_set") -> Path:
    path.write_text("".join(f"{line}\n" for line in (header, *rows)), errors="surrogateescape")
    return path


def saved(folder: Path) -> tuple[SavedPredictions, SavedPredictions]:
    return read_predictions(save(folder / "1.csv", FIRST)), read_predictions(save(folder / "2.csv", SECOND))


def test_differences_by_hand(tmp_path: Path) -> None:
    top1, in_set = compare(*saved(tmp_path))
    assert (top1.metric, top1.n, top1.only_first, top1.only_second) == ("top1_percent", 5, 1, 2)
    assert (top1.first_percent, top1.second_percent, top1.difference_points) == (60, 80, pytest.approx(20))
    assert (in_set.metric, in_set.n, in_set.only_first, in_set.only_second) == ("top1_in_set_percent", 4, 0, 1)
    assert (in_set.first_percent, in_set.second_percent, in_set.difference_points) == (75, 100, 25)


@pytest.mark.parametrize(("n", "both", "one", "other"), [(50, 20, 12, 3), (400, 200, 30, 31), (300, 0, 0, 6)])
def test_the_interval_is_that_of_resampled_images(n: int, both: int, one: int, other: int) -> None:
    first, second = np.zeros(n, bool), np.zeros(n, bool)
    first[: both + one] = True
    second[:both] = second[both + one : both + one + other] = True
    found = paired_difference("top1_percent", first, second)
    drawn = np.random.default_rng(7).integers(n, size=(RESAMPLES, n))  # images with replacement, the slow way
    means = 100 * (second[drawn].mean(1) - first[drawn].mean(1))
    low, high = np.percentile(means, (2.5, 97.5))
    assert found.difference_points == pytest.approx(100 * (other - one) / n)
    assert (found.low95, found.high95) == (pytest.approx(low, abs=100.01 / n), pytest.approx(high, abs=100.01 / n))


def test_the_verdict_follows_the_interval() -> None:
    right, half = np.ones(100, bool), np.arange(100) % 2 == 0
    names = "plain", "relabel"
    assert verdict(paired_difference("top1_percent", half, right), names).startswith("relabel is better")
    assert verdict(paired_difference("top1_percent", right, half), names).startswith("plain is better")
    assert "within the uncertainty" in verdict(paired_difference("top1_percent", half, ~half), names)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda rows: rows[:4], r"5 images and .* 4; .* line 6 is e/1.JPEG, e in the first and nothing in the second"),
        (lambda rows: [*rows[:3], rows[4], rows[3]], "line 5 is d/1.JPEG, d in the first and e/1.JPEG, e in"),
        (lambda rows: [*rows[:4], rows[4].replace(",e,", ",a,", 1)], "line 6 is e/1.JPEG, e in .* e/1.JPEG, a in"),
        (lambda rows: FIRST, "1.csv and .*2.csv contain the same predictions: they are the same file, or of the"),
    ],
)
def test_other_images_or_labels_and_the_same_predictions_are_refused(
    tmp_path: Path, change: object, match: str
) -> None:
    first, _ = saved(tmp_path)
    assert callable(change)
    second = read_predictions(save(tmp_path / "2.csv", change(SECOND)))
    with pytest.raises(UserError, match=match):
        compare(first, second)


def test_the_command_prints_a_table_of_80_columns_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path)
    tools.main(["compare", *(str(tmp_path / name) for name in ("1.csv", "2.csv")), "--json", str(tmp_path / "c.json")])
    lines = capsys.readouterr().out.splitlines()
    assert f"first:  {tmp_path / '1.csv'}" in lines and all(len(line) <= 80 for line in lines if "csv" not in line)
    assert [re.split(r"\s{2,}", line.strip())[1:] for line in lines if line.startswith("second - first, points")] == [
        ["+20.00", "+25.00"]
    ]
    record = json.loads((tmp_path / "c.json").read_text())
    assert record["images"]["b/1.JPEG"] == {"right": "first", "label": "b", "first": "b", "second": "c"}
    nll = record["calibration"]["first"]["nll_nats"]
    assert nll == pytest.approx(-np.log([0.9, 0.6, 0.1, 1, 0.2]).mean())
    assert f"second: ECE {record['calibration']['second']['ece_percent']:.1f} %, NLL " in "\n".join(lines)
    assert record["first"] == str(tmp_path / "1.csv") and record["differences"][0]["only_second"] == 2
    # c and e are right only in the second, b only in the first; a and d are right in both.
    assert [(c["name"], c["gain"]) for c in record["classes"]] == [("c", 1), ("e", 1), ("a", 0), ("d", 0), ("b", -1)]
    start = lines.index("of 5 classes, 2 gained and 1 lost, counted in images")
    assert [line.split() for line in lines[start + 3 : start + 6]] == [
        ["c", "1", "0", "1", "+1"], ["e", "1", "0", "1", "+1"], ["b", "1", "1", "0", "-1"],
    ]  # fmt: skip


def test_a_run_folder_or_a_checkpoint_leads_to_its_predictions(
    flags: Flags, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a flat folder, a share of which validates; after the run has gone on, they are no longer its predictions."""
    flags |= {"data.data_path": "", "data.train": photos / "train", "data.val_share": 0.3}
    flags |= {"optim.epochs": 1, "optim.warmup.epochs": 0}
    start(flags)
    hint = capsys.readouterr().out.replace("\\\n", "").partition("\nevaluate (")[2].splitlines()[1]
    run, weights = flags["util.run_dir"], flags["util.run_dir"] / "checkpoint-last.pth"

    def refused(given: Path) -> str:
        with pytest.raises(SystemExit) as caught:
            tools.main(["compare", str(given), str(given)])
        assert caught.value.code == 2
        return capsys.readouterr().err

    remedies = [refused(given).partition("This command writes it:\n")[2] for given in (run, weights)]
    assert remedies[0] == remedies[1]
    assert {*shlex.split(hint)} < {*shlex.split(remedies[0].replace("\\\n", ""))}
    tools.main(shlex.split(hint)[3:])
    assert re.search(r"top1_percent +[\d.]+ +9\s", capsys.readouterr().out)
    found = Path(refused(weights).partition("Give\n")[2].strip())
    assert found == run / "predictions-checkpoint-last-val.csv"
    other = save(tmp_path / "other.csv", found.read_text().replace(",0.", ",0.0").splitlines()[1:], HEADER)
    tools.main(["compare", str(run), str(other)])
    assert re.search(rf"\n{run.name}: +{found}\n", capsys.readouterr().out)
    start(flags | {"optim.epochs": 2})
    problem, _, remedy = refused(run).partition("Evaluate it again:\n")
    assert problem == f"error: {found}: {weights} has changed since it made these predictions. "
    tools.main(shlex.split(remedy.partition("\n  Or ")[0].replace("\\\n", ""))[3:])
    tools.main(["compare", str(run), str(other)])
    found.with_name("predictions-checkpoint-best-val.csv").touch()
    assert str(found) in refused(run).splitlines()[-1]
    assert "found no predictions-*.csv in this folder" in refused(tmp_path)


def test_own_labels_in_only_one_file_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path)
    lines = (tmp_path / "2.csv").read_text().splitlines()
    (tmp_path / "2.csv").write_text("\n".join(line.rpartition(",")[0] for line in lines) + "\n")
    tools.main(["compare", f"{tmp_path}/1.csv", f"{tmp_path}/2.csv"])
    assert f"not compared by own labels: {tmp_path}/2.csv has none" in capsys.readouterr().out


def test_a_file_to_compare_is_never_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path)
    before = (tmp_path / "1.csv").read_bytes()
    with pytest.raises(SystemExit) as caught:
        tools.main(["compare", f"{tmp_path}/1.csv", f"{tmp_path}/2.csv", "--json", f"{tmp_path}/1.csv"])
    assert caught.value.code == 2 and "is or lies inside FIRST" in capsys.readouterr().err
    assert (tmp_path / "1.csv").read_bytes() == before
