"""A label map is the right one and undamaged, or it is an error: files with random damage, in both forms.

2,000 files are damaged and read: 250 each of the four files of a store and of the four kinds of .pt file.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from relabel.annotation.label_set import open_label_set
from relabel.checks.report import make_report
from relabel.stores.manifest import MANIFEST, read_manifest
from relabel.stores.pt_folder import LabelFolder
from relabel.stores.store import check_present, open_label_store
from tests.conftest import Tried, cases
from tests.fuzz_targets import CLASSES, KEYS, assert_valid, random_map, write_store
from utils.errors import UserError

PER_FILE = cases(250)
FILES = ("maps.npy", "keys.npy", "crc32.npy", MANIFEST)


def damages(whole: bytes, count: int, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Yield (damage, content) of a file with one flipped bit or, every eighth time, cut short."""
    for number in range(count):
        at = int(rng.integers(len(whole)))
        if number % 8:
            bit = int(rng.integers(8))
            yield f"bit {bit} of byte {at}", whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
        else:
            yield f"cut to {at} bytes", whole[:at]


def assert_same_or_refused(folder: Path, what: str) -> bool:
    """Assert that every map is read as it was written, or refused; return whether one was refused."""
    try:
        store = open_label_store(folder, KEYS, CLASSES)
        check_present(store, lambda row: Path("image"))
    except UserError:
        return True
    refused = False
    for row in range(len(KEYS)):
        try:
            found = store.read(row)
        except UserError:
            refused = True
            continue
        np.testing.assert_array_equal(found.scores, random_map(row).scores, what)
        np.testing.assert_array_equal(found.classes, random_map(row).classes, what)
    return refused


def problems(folder: Path) -> list[str]:
    """Return what `check` finds in a set of label maps."""
    try:
        return make_report(open_label_set(folder, None), maps=1).problems
    except UserError as error:
        return [str(error)]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A packed store of nine maps."""
    (tmp_path / "store").mkdir()
    write_store(tmp_path / "store")
    return tmp_path / "store"


@pytest.mark.parametrize("name", FILES)
def test_nothing_damaged_is_read_silently_from_a_store(store: Path, name: str, tried: Tried) -> None:
    whole, refused = (store / name).read_bytes(), 0
    for what, content in damages(whole, PER_FILE, np.random.default_rng(0)):
        (store / name).write_bytes(content)
        refused += assert_same_or_refused(store, f"{name}: {what}")
    tried(PER_FILE)
    assert refused > 0.8 * PER_FILE  # some bits of a header have no meaning


@pytest.mark.parametrize("name", FILES)
def test_check_finds_every_damage_of_a_store(store: Path, name: str, tried: Tried) -> None:
    whole = (store / name).read_bytes()
    manifest = read_manifest(store)
    assert problems(store) == []
    for what, content in damages(whole, PER_FILE // 4, np.random.default_rng(1)):
        (store / name).write_bytes(content)
        if problems(store) == []:  # another layout of the same content
            assert name == MANIFEST and read_manifest(store) == manifest, what
    tried(PER_FILE // 4)


def pt_file(dtype: torch.dtype, form: str) -> bytes:
    """Return a label map as torch.save writes it."""
    file = io.BytesIO()
    planes = torch.from_numpy(np.stack([random_map(0).scores, random_map(0).classes.astype(np.float16)])).to(dtype)
    torch.save(planes, file, _use_new_zipfile_serialization=form == "zip")
    return file.getvalue()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_what_a_damaged_pt_file_gives_is_fit_for_training(
    tmp_path: Path, dtype: torch.dtype, form: str, tried: Tried
) -> None:
    """Shape, range, finite scores, each class once in a cell; changes within the range are not detected."""
    whole, refused = pt_file(dtype, form), 0
    for name in ("first", "second"):
        (tmp_path / f"{name}.pt").write_bytes(whole)
    store = LabelFolder(tmp_path, np.array([b"first", b"second"]), CLASSES)
    store.read(0)
    for what, content in damages(whole, PER_FILE, np.random.default_rng(2)):
        (tmp_path / "second.pt").write_bytes(content)
        try:
            found = store.read(1)
        except UserError:
            refused += 1
            continue
        assert_valid(found)
        assert found.shape == (2, 3, 4) and found.scores.dtype in (np.float16, np.float32), what
    tried(PER_FILE)
    assert refused >= PER_FILE // 8  # every cut, at least


def test_check_finds_damage_in_pt_files_that_carry_a_checksum(tmp_path: Path) -> None:
    """torch.load ignores it."""
    whole = pt_file(torch.float32, "zip")
    (tmp_path / "a.pt").write_bytes(whole)
    store = LabelFolder(tmp_path, np.array([b"a"]), CLASSES)
    store.check(0)
    at = whole.index(random_map(0).scores.astype(np.float32).tobytes())
    (tmp_path / "a.pt").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    store.read(0)
    with pytest.raises(UserError, match=r"a\.pt.*damaged"):
        store.check(0)
