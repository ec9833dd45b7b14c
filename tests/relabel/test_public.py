"""What `import relabel` offers to other training loops."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import relabel
from relabel import LabelMaps
from relabel.annotation.convert import pack
from relabel.label_map import LabelMap
from relabel.stores.pt_folder import write_label_map
from tests.conftest import ROOT

KEYS = ["ant/1.x", "ant/2", "bee/1"]


@pytest.fixture
def maps(tmp_path: Path) -> dict[str, LabelMap]:
    """Three label maps [2, 4, 6] of two classes, written in both forms."""
    rng = np.random.default_rng(0)
    drawn = {key: LabelMap.from_dense(rng.normal(size=(2, 4, 6)).astype(np.float16), 2) for key in KEYS}
    for key, label_map in drawn.items():
        write_label_map(tmp_path / "files", key, label_map)
    pack(tmp_path / "files", tmp_path / "packed", None, None, skip_damaged=False)
    return drawn


@pytest.mark.parametrize("form", ["files", "packed"])
def test_label_maps_are_read_by_key_in_either_form(form: str, maps: dict[str, LabelMap], tmp_path: Path) -> None:
    found = LabelMaps(tmp_path / form)
    assert list(found) == KEYS and len(found) == 3 and found.classes == ["ant", "bee"]
    for key, expected in maps.items():
        np.testing.assert_array_equal(found[key].scores, expected.scores)
        np.testing.assert_array_equal(found[key].classes, expected.classes)
    assert "bee/2" not in found and found.get("zebra/1") is None
    with pytest.raises(KeyError, match="ant/3"):
        found["ant/3"]


def test_every_public_name_is_there_and_no_other() -> None:
    assert all(hasattr(relabel, name) for name in relabel.__all__)
    with pytest.raises(AttributeError, match="no attribute 'LabelMapz'"):
        relabel.LabelMapz  # noqa: B018


def test_importing_relabel_loads_neither_torch_nor_the_stores() -> None:
    code = "import sys, relabel; print([name for name in sys.modules if name in ('torch', 'relabel.stores')])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
