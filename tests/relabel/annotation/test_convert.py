"""From one form of label maps into the other: the same maps, the same targets, and a list of what is missing."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from relabel.annotation.convert import compare_targets, pack, unpack
from relabel.label_map import LabelMap
from relabel.stores.pt_folder import write_label_map
from relabel.stores.store import open_label_store, sorted_keys
from tests.strategies import FEW, KEY_LISTS, SEEDS
from utils.errors import UserError

CLASSES = ["ant", "bee", "cow"]
KEYS = [f"{name}/image.{i}" for name in CLASSES for i in range(4)]


def random_map(seed: int, dtype: type = np.float32) -> LabelMap:
    return LabelMap.from_dense(np.random.default_rng(seed).normal(size=(3, 4, 6)).astype(dtype), 2)


def write_maps(folder: Path, dtype: type = np.float32, keys: list[str] = KEYS) -> Path:
    for key in keys:
        write_label_map(folder, key, random_map(KEYS.index(key), dtype))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_half_precision_is_packed_without_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack(write_maps(tmp_path / "pt", np.float16), tmp_path / "packed", None, None, skip_damaged=False)
    out = capsys.readouterr().out
    assert "2 of 3 classes per cell, 4 x 6 cells" in out and "48 random crops are identical" in out
    store = open_label_store(tmp_path / "packed", sorted_keys(KEYS), CLASSES)
    for row, key in enumerate(sorted(KEYS)):
        expected = random_map(KEYS.index(key), np.float16)
        np.testing.assert_array_equal(store.read(row).scores, expected.scores)
        np.testing.assert_array_equal(store.read(row).classes, expected.classes)


def test_rounding_of_float32_scores_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack(write_maps(tmp_path / "pt"), tmp_path / "packed", None, None, skip_damaged=False)
    assert "rounded to float16" in capsys.readouterr().out
    keys = sorted_keys(KEYS)
    files, packed = (open_label_store(tmp_path / name, keys, CLASSES) for name in ("pt", "packed"))
    largest, moved = compare_targets(files, packed, np.arange(12), 3)
    assert 0 < moved <= largest < 5e-4  # logits of a few units
    assert compare_targets(packed, packed, np.arange(12), 3) == (0, 0)


def test_there_and_back_again(tmp_path: Path) -> None:
    pack(write_maps(tmp_path / "pt", np.float16), tmp_path / "packed", None, None, skip_damaged=False)
    unpack(tmp_path / "packed", tmp_path / "files")
    (tmp_path / "files" / "bee" / "image.1.pt").unlink()
    unpack(tmp_path / "packed", tmp_path / "files")  # goes on
    planes = torch.load(tmp_path / "files" / "bee" / "image.1.pt", weights_only=True)
    assert planes.dtype == torch.float32 and planes.shape == (2, 2, 4, 6)
    pack(tmp_path / "files", tmp_path / "again", None, None, skip_damaged=False)
    assert (tmp_path / "again" / "maps.npy").read_bytes() == (tmp_path / "packed" / "maps.npy").read_bytes()
    before = contents(tmp_path / "again")
    pack(tmp_path / "files", tmp_path / "again", None, None, skip_damaged=False)  # done already
    assert contents(tmp_path / "again") == before


@FEW
@given(KEY_LISTS, st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), SEEDS)
@example(keys=["maps.npy/0"], k=1, h=1, w=1, seed=0)
def test_maps_under_any_names_come_back_from_a_store(keys: list[str], k: int, h: int, w: int, seed: int) -> None:
    """Spaces, dots, quotes, line ends, other scripts, bytes that are no text, and names as long as Linux allows."""
    rng = np.random.default_rng(seed)
    folders = {key.split("/")[0] for key in keys}
    dense = rng.normal(0, 99, (len(keys), len(folders), h, w)).astype(np.float16)
    written = {key: LabelMap.from_dense(one, min(k, len(folders))) for key, one in zip(keys, dense, strict=True)}
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        for key, label_map in written.items():
            write_label_map(out / "pt", key, label_map)
        pack(out / "pt", out / "packed", None, None, skip_damaged=False)
        unpack(out / "packed", out / "files")
        classes = sorted(folders)
        for form in ("pt", "packed", "files"):
            store = open_label_store(out / form, np.array([os.fsencode(key) for key in keys]), classes)
            for row, key in enumerate(keys):
                np.testing.assert_array_equal(store.read(row).scores, written[key].scores)
                np.testing.assert_array_equal(store.read(row).classes, written[key].classes)


def test_a_partial_download_is_packed_and_the_missing_maps_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for key in KEYS:
        (tmp_path / "train" / key).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(tmp_path / "train" / f"{key}.png")
    write_maps(tmp_path / "pt", keys=KEYS[:7])
    pack(tmp_path / "pt", tmp_path / "packed", tmp_path / "train", None, skip_damaged=False)
    out = capsys.readouterr().out
    assert "pt: 5 of 12:" in out and str(tmp_path / "train" / "cow" / "image.3.png") in out
    store = open_label_store(tmp_path / "packed", sorted_keys(KEYS), CLASSES)  # three classes: those of the images
    assert store.missing().tolist() == [7, 8, 9, 10, 11]


def test_damaged_maps_are_listed_together_or_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first one has another shape than all others, which does not decide; two are cut short."""
    write_maps(tmp_path / "pt")
    write_label_map(tmp_path / "pt", KEYS[0], LabelMap(np.ones((1, 9, 9), np.float32), np.zeros((1, 9, 9), np.int16)))
    for key in KEYS[5:7]:
        (tmp_path / "pt" / f"{key}.pt").write_bytes(b"PK cut short")
    with pytest.raises(
        UserError,
        match=r"^label maps .*read: 3 of 12(.|\n)*\[1, 9, 9\]; expected \[2, 4, 6\](.|\n)*\.1\.pt(.|\n)*\.2\.pt",
    ):
        pack(tmp_path / "pt", tmp_path / "packed", None, None, skip_damaged=False)
    assert not (tmp_path / "packed" / "manifest.json").exists()
    pack(tmp_path / "pt", tmp_path / "packed", None, None, skip_damaged=True)
    assert "label maps that cannot be read, left out: 3" in capsys.readouterr().out
    assert open_label_store(tmp_path / "packed", sorted_keys(KEYS), CLASSES).missing().tolist() == [0, 5, 6]
    unpack(tmp_path / "packed", tmp_path / "files")
    assert "ant/image.0" in (tmp_path / "files" / "manifest.json").read_text()  # with the reason


def test_a_form_taken_for_the_other_is_refused(tmp_path: Path) -> None:
    pack(write_maps(tmp_path / "pt"), tmp_path / "packed", None, None, skip_damaged=False)
    with pytest.raises(UserError, match=r"packed is a packed store; expected a folder of \.pt files"):
        pack(tmp_path / "packed", tmp_path / "other", None, None, skip_damaged=False)
    unpack(tmp_path / "packed", tmp_path / "files")
    with pytest.raises(UserError, match=r"files is not a packed store; expected one"):
        unpack(tmp_path / "files", tmp_path / "other")
    with pytest.raises(UserError, match=r"settings other than(.|\n)*form: 'pt', not 'packed'"):
        pack(tmp_path / "files", tmp_path / "files", None, None, skip_damaged=False)
    (tmp_path / "names.txt").write_text("bee\nant\ncow\n")
    with pytest.raises(UserError, match=r"--classes are not the classes in its manifest\.json"):
        pack(tmp_path / "files", tmp_path / "again", None, str(tmp_path / "names.txt"), skip_damaged=False)


def test_the_classes_can_be_named(tmp_path: Path) -> None:
    """Two class folders of a download for three classes: only the user knows the third."""
    write_maps(tmp_path / "pt", keys=KEYS[:8])
    with pytest.raises(UserError, match=r"the class id 2 in the cell.*name those: `python -m relabel pack --help`"):
        pack(tmp_path / "pt", tmp_path / "packed", None, None, skip_damaged=False)
    (tmp_path / "names.txt").write_text("ant\nbee\ncow\n")
    pack(tmp_path / "pt", tmp_path / "packed", None, str(tmp_path / "names.txt"), skip_damaged=False)
    store = open_label_store(tmp_path / "packed", sorted_keys(KEYS[:8]), ["bee", "ant"])
    expected = random_map(0).to_dense(3, fill=-5)[[1, 0]]
    np.testing.assert_allclose(store.read(0).to_dense(2, fill=-5), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ant\nwasp\ncow\n", r"1 class folders that are not among the 3 classes.*first: 'bee'"),
        ("", "found no class"),
        ("ant\nbee\nant\n", "found .*twice"),
        (None, "the class list .*names.txt cannot be read"),
    ],
)
def test_an_invalid_list_of_classes_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "names.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        pack(write_maps(tmp_path / "pt"), tmp_path / "packed", None, str(tmp_path / "names.txt"), skip_damaged=False)
    assert not (tmp_path / "packed").exists()


def test_imagenets_classes_are_built_in(tmp_path: Path) -> None:
    write_label_map(tmp_path / "pt", "n01440764/a", LabelMap(np.ones((1, 2, 3), np.float32), np.full((1, 2, 3), 999)))
    pack(tmp_path / "pt", tmp_path / "packed", None, "imagenet", skip_damaged=False)
    store = open_label_store(tmp_path / "packed", sorted_keys(["n01440764/a"]), ["n15075141", "n01440764"])
    assert (store.read(0).classes == 0).all()  # toilet tissue, the last of the 1000
