"""The folder of .pt label maps: what it reads, what it refuses, and that nothing in a file is ever executed."""

import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relabel.label_map import LabelMap
from relabel.stores.manifest import Manifest
from relabel.stores.pt_folder import LabelFolder, list_label_files, map_path, write_label_map
from relabel.stores.store import LabelStore, check_one_per_class, check_present, exclusive_folder, open_label_store
from tests.strategies import KEYS as ANY_KEY
from tests.strategies import SEEDS
from tests.traps import hostile_files
from utils.errors import UserError

K = 30
CLASSES = [f"class{i}" for i in range(K)]
KEYS = ["n01/a", "n01/name.with.dots", "n02/b", "n02/c", "n03/d"]
LABELS = np.array([0, 0, 1, 1, 2])


def random_map(seed: int, k: int = 3, h: int = 4, w: int = 6, dtype: type = np.float32) -> LabelMap:
    rng = np.random.default_rng(seed)
    return LabelMap.from_dense(rng.normal(size=(K, h, w)).astype(dtype), k)


def planes_of(label_map: LabelMap) -> torch.Tensor:
    return torch.from_numpy(np.stack([label_map.scores, label_map.classes.astype(label_map.scores.dtype)]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A map for each key."""
    for seed, key in enumerate(KEYS):
        write_label_map(tmp_path / "labels", key, random_map(seed))
    return tmp_path / "labels"


@pytest.fixture
def store(folder: Path) -> LabelStore:
    return open_folder(folder)


def open_folder(folder: Path, keys: list[str] | np.ndarray = KEYS, num_classes: int = K) -> LabelStore:
    classes = [f"class{i}" for i in range(num_classes)]
    return open_label_store(folder, np.array(keys, dtype=np.bytes_), classes)


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_reads_both_formats_and_both_precisions(folder: Path, as_zip: bool, dtype: type) -> None:
    written = random_map(77, dtype=dtype)
    torch.save(planes_of(written), folder / "n02" / "b.pt", _use_new_zipfile_serialization=as_zip)
    found = open_folder(folder).read(2)
    assert found.scores.dtype == dtype and found.classes.dtype == np.int16
    np.testing.assert_array_equal(found.scores, written.scores)
    np.testing.assert_array_equal(found.classes, written.classes)


@given(ANY_KEY, st.sampled_from([np.float16, np.float32]), st.sampled_from([1, 30, 2049, 21_000]), st.data(), SEEDS)
def test_any_map_comes_back_under_any_name(
    tmp_path_factory: pytest.TempPathFactory, key: str, dtype: type, classes: int, data: st.DataObject, seed: int
) -> None:
    """Half precision holds ids up to 2048."""
    k, h, w = data.draw(st.integers(1, min(classes, 9))), data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    rng = np.random.default_rng(seed)
    largest = min(classes, 2049) if dtype == np.float16 else classes
    ids = (rng.integers(largest, size=(1, h, w)) + np.arange(k)[:, None, None]) % largest
    written = LabelMap(rng.uniform(-65_504, 65_504, (k, h, w)).astype(dtype), ids)
    path = write_label_map(tmp_path_factory.getbasetemp() / "any", key, written)
    names, keys = [str(i) for i in range(largest)], np.array([os.fsencode(key)])
    found = LabelFolder(tmp_path_factory.getbasetemp() / "any", keys, names).read(0)
    path.unlink()
    np.testing.assert_array_equal(found.scores, written.scores)
    np.testing.assert_array_equal(found.classes, written.classes)


def test_reads_zip_files_as_torch_of_2021_wrote_them(folder: Path) -> None:
    """Three members, none of which states the byte order; later versions write more."""
    written, path = random_map(77), folder / "n02" / "b.pt"
    torch.save(planes_of(written), path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            if name.endswith(("/data.pkl", "/data/0", "/version")):
                archive.writestr(name, content)
    np.testing.assert_array_equal(open_folder(folder).read(2).scores, written.scores)


def test_pending_signs_and_gradients_are_resolved(folder: Path) -> None:
    written = random_map(77)
    planes = torch.nn.Parameter(torch._neg_view(-planes_of(written)))
    torch.save(planes, folder / "n02" / "b.pt")
    np.testing.assert_array_equal(open_folder(folder).read(2).scores, written.scores)


def test_opening_lists_no_folder_and_the_store_is_cheap_to_pickle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every process opens it, and a million files take long to list: only `missing` does."""
    monkeypatch.setattr(os, "scandir", None)
    keys = np.array([f"n{row // 100:05d}/image_{row:07d}" for row in range(20_000)], dtype=np.bytes_)
    store = open_folder(tmp_path, keys)
    assert len(pickle.dumps(store)) < keys.nbytes + 2000
    write_label_map(tmp_path, keys[12_345].decode(), random_map(5))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).read(12_345).scores, random_map(5).scores)


def test_missing_maps_are_counted_and_the_first_is_named(folder: Path, store: LabelStore, tmp_path: Path) -> None:
    def first_missing() -> str:
        with pytest.raises(UserError, match="`python -m relabel annotate`") as error:
            check_present(store, lambda row: Path("train", f"{KEYS[row]}.JPEG"))
        return str(error.value)

    (folder / "n02" / "b.pt").unlink()
    message = first_missing()
    assert message.startswith("images without a label map: 1 of 5.")
    assert f"image train/n02/b.JPEG; expected its map at {folder}/n02/b.pt (the folder exists" in message
    with pytest.raises(UserError, match=r"found no label map at .*n02/b\.pt.*relabel annotate"):
        store.read(2)
    shutil.rmtree(folder / "n02")
    assert "2 of 5" in first_missing() and "(the whole folder is missing)" in first_missing()
    (tmp_path / "file").touch()
    for name, found in (("file", "a file"), ("absent", "nothing")):
        with pytest.raises(UserError, match=rf"found {found} at .*{name}; .*relabel annotate"):
            open_folder(tmp_path / name)


def test_the_maps_of_a_folder_can_be_listed(folder: Path) -> None:
    (folder / "n01" / ".hidden.pt").touch()
    (folder / "n01" / "notes.txt").touch()
    write_label_map(folder, "flat.one", random_map(1))
    assert sorted(list_label_files(folder)) == sorted([*KEYS, "flat.one"])


# Content


def test_one_map_of_each_class_is_read(folder: Path, store: LabelStore) -> None:
    (folder / "n02" / "c.pt").write_bytes(b"second of its class: not read before training")
    check_one_per_class(store, LABELS)
    (folder / "n02" / "b.pt").write_bytes(b"first of its class")
    with pytest.raises(UserError, match=r"n02/b\.pt: cannot be read"):
        check_one_per_class(store, LABELS)


def test_one_shape_per_folder(folder: Path, store: LabelStore) -> None:
    """That of the first map that is read, which a worker knows too, or that of the manifest."""
    check_one_per_class(store, LABELS)
    write_label_map(folder, "n02/c", random_map(1, h=6, w=4))
    for opened in (store, pickle.loads(pickle.dumps(store))):
        with pytest.raises(UserError, match=r"n02/c\.pt: found .*\[3, 6, 4\]; expected \[3, 4, 6\] as in .*n01/a\.pt"):
            opened.read(3)
    write_manifest(folder, h=6, w=4)
    with pytest.raises(UserError, match=r"shape \[k, h, w\] = \[3, 4, 6\]; expected \[3, 6, 4\] as in .*labels"):
        open_folder(folder).check(0)


def changed(plane: int, value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    planes = planes_of(random_map(0)).to(dtype)
    planes[plane, 1, 2, 5] = value
    return planes


def twice() -> torch.Tensor:
    planes = planes_of(random_map(0))
    planes[1, 2] = planes[1, 0]
    return planes


@pytest.mark.filterwarnings("ignore:Validating sparse tensor", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"scores": torch.zeros(3)}, r"found a dict; expected a float32 or float16 tensor \[2, k, h, w\]"),
        (torch.zeros(3, 4, 6), r"found a tensor of shape \[3, 4, 6\] and type float32; expected .*\[2, k, h, w\]"),
        (torch.zeros(2, 3, 0, 6), r"shape \[2, 3, 0, 6\]"),
        (torch.zeros(2, 3, 4, 6, dtype=torch.float64), "type float64; expected a float32 or float16"),
        (torch.zeros(2, 3, 4, 6).to_sparse(), "a sparse, nested or quantized tensor"),
        (torch.zeros(2, 1, 1, 1).expand(2, 2**15, 2**15, 2**15), "a tensor of repeated numbers of shape"),
        (torch.nested.nested_tensor([torch.zeros(3, 4, 6)] * 2), "found a sparse, nested or quantized tensor"),
        (changed(0, np.nan), "the score nan in the cell at row 2, column 5"),
        (changed(1, 30), r"the class id 30 in the cell at row 2, column 5; expected ids in 0\.\.29 .*30 classes"),
        (changed(1, -1), "the class id -1 in the cell"),
        (changed(1, 7.5), r"the class id 7\.5 in plane 1; expected whole numbers in 0\.\.29"),
        (changed(1, np.inf, torch.float16), "the class id inf in plane 1; expected whole numbers"),
        (planes_of(random_map(0)).flip(0), "in plane 1; expected whole numbers.*another order"),
        (twice(), "a second score of class .* at most once"),
    ],
)
def test_a_wrong_map_is_refused(folder: Path, store: LabelStore, content: object, message: str) -> None:
    torch.save(content, folder / "n01" / "a.pt")
    with pytest.raises(UserError, match=rf"{folder}/n01/a\.pt: found .*{message.removeprefix('found ')}"):
        store.read(0)


def test_an_id_that_half_precision_cannot_tell_apart_is_refused(tmp_path: Path) -> None:
    """2049 is stored as 2048 in half precision: with 2050 classes nobody knows which of the two was meant."""
    torch.save(torch.full((2, 1, 2, 3), 2048.0, dtype=torch.float16), tmp_path / "a.pt")
    assert (open_folder(tmp_path, ["a"], 2049).read(0).classes == 2048).all()
    with pytest.raises(UserError, match=r"a\.pt: found the class id 2048 in half precision.*expected float32"):
        open_folder(tmp_path, ["a"], 2050).read(0)
    label_map = LabelMap(np.ones((1, 2, 3), np.float16), np.full((1, 2, 3), 2049))
    with pytest.raises(UserError, match=r"b\.pt: float16 represents class ids exactly only up to 2048.*float32"):
        write_label_map(tmp_path, "b", label_map)


# Damaged and malicious files


def test_foreign_files_are_refused(folder: Path, store: LabelStore) -> None:
    path = folder / "n01" / "a.pt"
    for content in (b"", b"PK\x03\x04broken", b"<html>404</html>"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"n01/a\.pt: cannot be read as a label map \(.*make it again"):
            store.read(0)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"n01/a\.pt: cannot be read as a label map"):
        store.read(0)


def test_nothing_in_a_file_runs(folder: Path, store: LabelStore, tmp_path: Path) -> None:
    for content in hostile_files(tmp_path / "it-ran").values():
        (folder / "n01" / "a.pt").write_bytes(content)
        with pytest.raises(UserError, match=r"n01/a\.pt: cannot be read as a label map \(UnpicklingError"):
            store.read(0)
    assert not (tmp_path / "it-ran").exists()


def write_manifest(folder: Path, h: int = 4, w: int = 6) -> None:
    manifest = Manifest(form="pt", maps=5, k=3, h=h, w=w, class_names=CLASSES, made_by={})
    manifest.write(folder / "manifest.json")


def test_ids_are_translated_by_the_names_of_the_manifest(folder: Path) -> None:
    """The data has three of the maps' thirty classes, in another order: the others count for nothing."""
    write_manifest(folder)
    wanted = ["class7", "class29", "class0"]
    store = open_label_store(folder, np.array(KEYS, dtype=np.bytes_), wanted)
    original, read = random_map(3).to_dense(K, fill=-9), store.read(3).to_dense(3, fill=-9)
    np.testing.assert_array_equal(read, original[[7, 29, 0]])
    with pytest.raises(UserError, match=r"lack 1 of the data's 2 classes, the first: 'zebra'"):
        open_label_store(folder, np.array(KEYS, dtype=np.bytes_), ["class1", "zebra"])


def test_links_to_nothing_and_empty_files_hide_no_other_map(folder: Path, store: LabelStore) -> None:
    """An empty file is what a power failure leaves; a link may lead nowhere, or to itself."""
    parent = (folder / KEYS[0]).parent
    for name, target in (("README", "/nowhere"), ("gone.pt", "/nowhere"), ("loop", "loop"), ("loop.pt", "loop.pt")):
        (parent / name).symlink_to(target)
    assert store.missing().tolist() == []
    map_path(folder, KEYS[0]).write_bytes(b"")
    assert store.missing().tolist() == [0]


def test_an_archive_that_would_fill_the_memory_is_refused(folder: Path, store: LabelStore) -> None:
    path = map_path(folder, KEYS[0])
    torch.save(torch.zeros(2, 1, 300, 300), path)
    with zipfile.ZipFile(path) as whole:
        members = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name, content in members.items():
            bomb.writestr(name, content)
    for read in (store.read, store.check):
        with pytest.raises(UserError, match=r"cannot be read as a label map .*bytes and would have .* when unpacked"):
            read(0)


def test_a_second_writer_is_kept_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.files._LOCK_WAIT_S", 0.1)
    first, second = exclusive_folder(tmp_path), exclusive_folder(tmp_path)
    with first, pytest.raises(UserError, match="another process is writing label maps in"), second:
        pass
