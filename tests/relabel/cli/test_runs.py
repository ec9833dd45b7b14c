"""The command that draws runs: their names, and what is wrong with a folder."""

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from relabel import __main__ as tools
from tests.relabel.figures.test_curves import legend, records


def write_run(folder: Path, accuracies: list[float]) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records(accuracies)))
    return folder


def test_runs_are_drawn_together_under_their_folders_names(tmp_path: Path, drawn: list[Figure]) -> None:
    runs = [write_run(tmp_path / "runs" / name, [20.0, 50.0]) for name in ("plain", "deep/relabel")]
    tools.main(["curves", *map(str, runs), "--out", str(tmp_path / "curves.png")])
    assert legend(drawn[0].axes[0]) == ["plain", "deep/relabel"] and (tmp_path / "curves.png").stat().st_size > 10_000


@pytest.mark.parametrize("kind", ["no run", "empty", "no validation", "damaged"])
def test_a_folder_that_cannot_be_drawn_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    bad = write_run(tmp_path / "bad", [])
    if kind == "no run":
        (bad / "metrics.jsonl").unlink()
    elif kind != "no validation":
        (bad / "metrics.jsonl").write_text("" if kind == "empty" else '{"event": "val')
    words = ["curves", str(write_run(tmp_path / "good", [1.0])), str(bad), "--out", str(tmp_path / "curves.png")]
    with pytest.raises(SystemExit) as caught:
        tools.main(words)
    assert caught.value.code == 2 and f"RUN {bad}: " in capsys.readouterr().err
    assert not (tmp_path / "curves.png").exists()
