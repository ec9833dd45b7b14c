"""Each benchmark program runs, in its tiny form; the figures of that form mean nothing and are not looked at."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem not in ("__init__", "result"))


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_prints_a_table_and_writes_json(program: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"benchmarks.{program}", "--tiny", "--json", str(tmp_path / "result.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["title"] in " ".join(done.stdout.split()) and result["machine"]["torch"]
    for figure in result["figures"]:
        low, high = figure["quartiles"]
        assert figure["n"] >= 1 and low <= figure["median"] <= high and figure["unit"]


def test_published_results_come_from_programs_that_exist() -> None:
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        assert path.stem in PROGRAMS
        assert {"title", "date", "machine", "figures", "remarks"} <= json.loads(path.read_text()).keys()
