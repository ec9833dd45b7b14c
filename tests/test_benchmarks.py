"""Each benchmark program runs in its tiny form, whose values mean nothing."""

import json
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import result
from benchmarks.cifar10_folder import write_folder
from benchmarks.code_size import code_lines
from benchmarks.growth_plots import PANELS, draw_growth, points
from benchmarks.label_pooling import dense_name, pool_name
from benchmarks.result import Figure, report
from benchmarks.soak import growth, growth_in_words
from benchmarks.step_plot import draw_step
from tests.conftest import ROOT

MEASURE_NOTHING = ("__init__", "result", "growth_plots", "step_plot", "cifar10_folder", "code_size")
TESTED_ELSEWHERE = ("teacher_quality",)  # with the reproduction
LEFT_OUT = MEASURE_NOTHING + TESTED_ELSEWHERE
PROGRAMS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem not in LEFT_OUT)


@pytest.mark.slow
@pytest.mark.usefixtures("own_handlers")
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_prints_a_table_and_writes_json(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [program, "--tiny", "--json", str(tmp_path / "result.json")])
    import_module(f"benchmarks.{program}").main()
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["title"] in " ".join(capsys.readouterr().out.split()) and written["machine"]["torch"]
    for figure in written["figures"]:
        low, high = figure["quartiles"]
        assert figure["n"] >= 1 and low <= figure["median"] <= high and figure["unit"]
    for panel in PANELS:
        if panel.program == program:
            assert all(len(points(written["figures"], curve.figures)) for curve in panel.curves), panel.title
    if program == "gpu_step":
        draw_step(tmp_path / "result.json", tmp_path / "step.png")
        with Image.open(tmp_path / "step.png") as picture:
            assert 900 <= picture.width <= 1200


def test_progress_is_printed_between_rounds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(result, "PROGRESS_EVERY_S", 0.0)
    seconds = result.time_interleaved({"nothing": int}, {"nothing": 1}, rounds=3)
    assert len(seconds["nothing"]) == 3 and "timing  2 of 3 rounds" in capsys.readouterr().out


def test_lines_of_code_are_counted_without_docstrings_comments_and_blanks() -> None:
    source = '"""A module."""\n\n# a comment\ndef f() -> str:\n    """A\n    function."""\n    return """a\n\n# b"""\n'
    assert code_lines(source) == 4


def test_a_file_of_photos_becomes_class_folders(tmp_path: Path) -> None:
    photos = [f"photo {number}".encode() for number in range(4)]
    np.savez(
        tmp_path / "photos.npz",
        bytes=np.frombuffer(b"".join(photos), np.uint8),
        offsets=np.cumsum([0, *map(len, photos)]),
        labels=np.array([1, 0, 1, 0], np.uint8),
        test=np.array([False, False, True, True]),
        classes=np.array(["cat", "dog"]),
    )
    write_folder(tmp_path / "photos.npz", tmp_path / "out")
    found = {str(path.relative_to(tmp_path / "out")): path.read_bytes() for path in (tmp_path / "out").rglob("*.jpg")}
    assert found == {
        "train/dog/00000.jpg": photos[0],
        "train/cat/00001.jpg": photos[1],
        "val/dog/00002.jpg": photos[2],
        "val/cat/00003.jpg": photos[3],
    }


def test_a_leak_is_told_from_noise() -> None:
    """900 looks in a quarter of an hour, which jump by 100 MB between training and validation."""
    rng = np.random.default_rng(0)
    hours = np.linspace(0.25, 0.5, 900)
    noise = 600 + rng.normal(0, 5, 900) - 100 * (rng.random(900) < 0.2)
    for leak, says in ((0.0, False), (40.0, True)):
        slope, low, high = growth(hours, noise + leak * hours)
        assert low < leak < high and high - low < 40
        assert ("GROWS" in growth_in_words("memory (PSS)", (slope, low, high), level=600)) == says
    assert growth(hours, np.full(900, 78.0)) == (0, 0, 0)


def test_published_results_come_from_programs_that_exist() -> None:
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        assert path.stem in (*PROGRAMS, *TESTED_ELSEWHERE)
        assert {"title", "date", "machine", "figures", "remarks"} <= json.loads(path.read_text()).keys()


def test_growth_is_drawn_from_results_and_what_is_missing_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of the four panels have their figures here; numbers come in order, times in seconds."""
    names = [pool_name(1000, 5), pool_name(1000, 10), pool_name(10, 5), dense_name(10), dense_name(1000)]
    figures = [Figure.of(name, "us/image", [value - 1, value, value + 2]) for value, name in enumerate(names, 3)]
    report("pooling", figures, [], tmp_path / "label_pooling.json")
    report("nothing that grows", figures[:0], [], tmp_path / "input_path.json")
    draw_growth(tmp_path, tmp_path / "growth.png")
    printed = capsys.readouterr().out
    assert [panel.title in printed for panel in PANELS] == [True, True, False, False]
    with Image.open(tmp_path / "growth.png") as picture:
        assert 900 <= picture.width <= 1200 and np.asarray(picture.convert("L")).std() > 5
    written = json.loads((tmp_path / "label_pooling.json").read_text())["figures"]
    expected = [[10, 4.5e-6, 5e-6, 6e-6], [1000, 2.5e-6, 3e-6, 4e-6]]
    np.testing.assert_allclose(points(written, PANELS[2].curves[1].figures), expected)
