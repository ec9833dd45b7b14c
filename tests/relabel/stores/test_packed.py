"""The packed store: what it reads, that no damage is read silently, that it is whole or absent."""

import io
import json
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relabel.label_map import LabelMap
from relabel.stores.manifest import Manifest, read_manifest
from relabel.stores.packed import CRCS, KEYS, MAPS, find_rows, sha256_of
from relabel.stores.packed_writer import PackedWriter
from relabel.stores.pt_folder import write_label_map
from relabel.stores.store import LabelStore, check_one_per_class, check_present, keys_of, open_label_store, sorted_keys
from tests.strategies import KEY_LISTS
from utils.errors import UserError

K, SHAPE = 30, (3, 4, 6)
CLASSES = [f"class{i}" for i in range(K)]
NAMES = sorted_keys([f"n{i % 4:02d}/image.{i}" for i in range(12)] + ["n00/größe"])
MANIFEST = Manifest(form="packed", maps=len(NAMES), k=3, h=4, w=6, class_names=CLASSES, made_by={"teacher": "one"})
ALL = set(range(len(NAMES)))


def random_map(seed: int) -> LabelMap:
    return LabelMap.from_dense(np.random.default_rng(seed).normal(size=(K, 4, 6)).astype(np.float16), 3)


def begin(folder: Path, manifest: Manifest = MANIFEST, keys: np.ndarray = NAMES) -> PackedWriter:
    folder.mkdir(exist_ok=True)
    writer = PackedWriter(folder, keys, manifest)
    writer.begin()
    return writer


def write_store(folder: Path, rows: set[int] = ALL, manifest: Manifest = MANIFEST, first_seed: int = 0) -> Path:
    writer = begin(folder, manifest)
    for row in sorted(rows, reverse=True):
        writer.write(row, random_map(first_seed + row))
    writer.commit({os.fsdecode(NAMES[row]): "it is damaged" for row in ALL - rows})
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_store(tmp_path / "store")


def open_store(folder: Path, keys: np.ndarray = NAMES, class_names: list[str] = CLASSES) -> LabelStore:
    return open_label_store(folder, keys, class_names)


def assert_map(found: LabelMap, seed: int) -> None:
    np.testing.assert_array_equal(found.scores, random_map(seed).scores)
    np.testing.assert_array_equal(found.classes, random_map(seed).classes)


# Reading


def test_each_row_is_its_keys_map_in_any_order(folder: Path) -> None:
    order = np.random.default_rng(0).permutation(len(NAMES))[:7]
    store = open_store(folder, NAMES[order])
    check_present(store, lambda row: Path("image"))
    for row, seed in enumerate(order):
        assert_map(store.read(row), seed)
        store.check(row)


@given(KEY_LISTS, st.data())
def test_a_row_is_found_as_in_a_dict(store_keys: list[str], data: st.DataObject) -> None:
    keys = data.draw(st.permutations(store_keys)) + data.draw(KEY_LISTS)
    keys = data.draw(st.permutations(list(dict.fromkeys(keys))))[: data.draw(st.integers(1, 9))]
    skipped = data.draw(st.sets(st.sampled_from(store_keys)))
    rows = {key: row for row, key in enumerate(sorted(store_keys, key=os.fsencode)) if key not in skipped}
    found = find_rows(sorted_keys(store_keys), np.array([os.fsencode(key) for key in keys]), sorted_keys([*skipped]))
    assert [rows.get(key, -1) for key in keys] == found.tolist()


def test_numpy_alone_can_read_it(folder: Path) -> None:
    maps, keys, crcs = (np.load(folder / name) for name in (MAPS, KEYS, CRCS))
    assert keys.tolist() == sorted(keys.tolist()) == NAMES.tolist()
    np.testing.assert_array_equal(maps["scores"][4], random_map(4).scores)
    np.testing.assert_array_equal(maps["classes"][4], random_map(4).classes)
    assert crcs[4] == crc32(keys[4] + maps[4].tobytes())


def test_images_without_a_map_are_reported(folder: Path) -> None:
    store = open_store(folder, sorted_keys(["n00/image.0", "n00/other", "zzz/last"]))
    assert store.missing().tolist() == [1, 2]
    with pytest.raises(UserError, match=r"images without a label map: 2 of 3\. The first: image 1\.jpg"):
        check_present(store, lambda row: Path(f"{row}.jpg"))
    with pytest.raises(UserError, match="has no label map for row 1 of the images"):
        store.read(1)


def test_ids_are_translated_by_name(folder: Path) -> None:
    store = open_store(folder, class_names=["class29", "class3"])
    for row in range(len(NAMES)):
        expected = random_map(row).to_dense(K, fill=-7)[[29, 3]]
        np.testing.assert_array_equal(store.read(row).to_dense(2, fill=-7), expected)
    with pytest.raises(UserError, match=r"store.* 1 of the data's 2 classes, the first: 'zebra'"):
        open_store(folder, class_names=["class1", "zebra"])


def test_all_ids_of_two_bytes_are_kept_and_more_classes_refused(tmp_path: Path) -> None:
    names, key = [str(i) for i in range(65_535)], sorted_keys(["a"])
    manifest = Manifest(form="packed", maps=1, k=3, h=1, w=2, class_names=names, made_by={})
    ids = np.array([40_000, 32_768, 65_534]).reshape(3, 1, 1).repeat(2, axis=2)
    writer = begin(tmp_path / "store", manifest, key)
    writer.write(0, LabelMap(np.ones((3, 1, 2), np.float16), ids))
    writer.commit({})
    np.testing.assert_array_equal(open_store(tmp_path / "store", key, names).read(0).classes, ids)
    with pytest.raises(UserError, match=r"found 65,536 classes; expected at most 65,535 .*--format pt"):
        PackedWriter(tmp_path, key, manifest.model_copy(update={"class_names": [*names, "one more"]}))


def test_a_pickled_store_is_small_and_opens_its_own_file(tmp_path: Path) -> None:
    keys = sorted_keys([f"n{i // 100:05d}/image_{i:07d}" for i in range(20_000)])
    manifest = Manifest(form="packed", maps=len(keys), k=1, h=1, w=2, class_names=["a", "b"], made_by={})
    writer = begin(tmp_path / "store", manifest, keys)
    writer.write(12_345, LabelMap(np.full((1, 1, 2), 7, np.float16), np.ones((1, 1, 2), np.int16)))
    writer.commit({})
    store = open_store(tmp_path / "store", keys, ["a", "b"])
    store.read(12_345)
    assert len(pickle.dumps(store)) < 12 * len(keys) + 2000
    assert pickle.loads(pickle.dumps(store)).read(12_345).scores.tolist() == [[[7, 7]]]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_every_kind_read_both_forms(folder: Path, method: str) -> None:
    for row, key in enumerate(NAMES.tolist()):
        write_label_map(folder.parent / "files", os.fsdecode(key), random_map(row))
    packed, files = open_store(folder), open_store(folder.parent / "files")
    packed.read(0)  # a forked worker inherits the open file
    with multiprocessing.get_context(method).Pool(1) as pool:
        for store in (packed, files):
            for row, found in enumerate(pool.map(store.read, range(len(NAMES)))):
                assert_map(found, row)


# Damage


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """Write a file of a store and a manifest that agrees with it."""
    manifest = read_manifest(folder)
    assert manifest is not None
    (folder / name).write_bytes(content)
    hashes = {name: sha256_of(folder / name) for name in (MAPS, KEYS, CRCS)}
    manifest.model_copy(update={"sha256": hashes}).write(folder / "manifest.json")


def test_a_flipped_bit_is_found_in_its_record_and_no_other(folder: Path) -> None:
    """Every bit of a record belongs to its CRC, and a CRC can be damaged itself."""
    rng = np.random.default_rng(0)
    for name in (MAPS, CRCS):
        whole = (folder / name).read_bytes()
        start = len(whole) - (len(NAMES) * (4 * 3 * 4 * 6 if name == MAPS else 4))
        for bit in rng.choice(np.arange(8 * start, 8 * len(whole)), 8, replace=False).tolist():
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            replace_file(folder, name, bytes(damaged))
            store = open_store(folder)
            row = (bit // 8 - start) * len(NAMES) // (len(whole) - start)
            with pytest.raises(UserError, match=rf"{MAPS}, record {row}: the label map does not match its CRC"):
                store.read(row)
            assert_map(store.read((row + 1) % len(NAMES)), (row + 1) % len(NAMES))
        replace_file(folder, name, whole)


def test_files_of_a_store_with_other_classes_are_detected(folder: Path, tmp_path: Path) -> None:
    """The same images and shape, another order of the classes: maps and checksums agree, copied together."""
    write_store(tmp_path / "other", manifest=MANIFEST.model_copy(update={"class_names": CLASSES[::-1]}), first_seed=100)
    for name in (MAPS, CRCS):
        shutil.copy(tmp_path / "other" / name, folder / name)
    with pytest.raises(UserError, match=r"crc32\.npy is not the one that manifest\.json was written with"):
        open_store(folder)


def test_a_map_of_another_image_is_detected(folder: Path) -> None:
    """Two records and their CRCs exchanged: each is whole, but belongs to another key."""
    for name in (MAPS, CRCS):
        array = np.load(folder / name)
        array[[2, 5]] = array[[5, 2]]
        replace_file(folder, name, npy(array))
    store = open_store(folder)
    for row in (2, 5):
        with pytest.raises(UserError, match="does not match its CRC"):
            store.read(row)


def test_a_file_cut_short_while_it_is_open(folder: Path) -> None:
    store = open_store(folder)
    os.truncate(folder / MAPS, (folder / MAPS).stat().st_size - 10)
    assert_map(store.read(3), 3)
    with pytest.raises(UserError, match="the label map is truncated"):
        store.read(len(NAMES) - 1)
    with pytest.raises(UserError, match=r"maps\.npy: found [\d,]+ bytes; expected [\d,]+\. .*copy or download"):
        open_store(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"version": 99, "surprise": 1},
            r"found version 99 of the format; expected 1\. Another version of this program",
        ),
        ({"form": "zip"}, r"manifest\.json is not a manifest of label maps \(form: Input"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"class_names": ["a", "a"]}, "two classes have the same name"),
        ({"k": 2**12, "h": 2**12, "w": 2**12}, r"a map has more than 268,435,456 scores"),
        ({"k": 2}, r"maps\.npy: found .*, as keys\.npy and manifest\.json say\."),
        ({"maps": 12}, r"manifest\.json counts 12 maps"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(folder: Path, change: dict[str, object], message: str) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sha256": {}, **change}))
    with pytest.raises(UserError, match=message):
        open_store(folder)


def test_a_changed_manifest_is_refused_and_another_layout_is_not(folder: Path) -> None:
    """Nothing else shows that two classes were exchanged: every map would be read as of other classes."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(content.items())), indent=None))
    assert_map(open_store(folder).read(5), 5)
    path.write_text(json.dumps({**content, "class_names": [CLASSES[1], CLASSES[0], *CLASSES[2:]]}))
    with pytest.raises(UserError, match=r"manifest\.json: its content does not match its own sha256"):
        open_store(folder)
    del content["sha256"]["manifest.json"]  # stores of earlier versions lack it
    path.write_text(json.dumps(content))
    assert_map(open_store(folder).read(5), 5)


@pytest.mark.parametrize("order", [[1, 0, *range(2, 13)], [0, 0, *range(2, 13)]], ids=["shuffled", "twice"])
def test_keys_that_are_not_sorted_are_refused(folder: Path, order: list[int]) -> None:
    """Records and checksums follow their keys: only the search for a key goes wrong."""
    for name in (MAPS, KEYS, CRCS):
        np.save(folder / name, np.load(folder / name)[order])
    for read in (open_store, keys_of):
        with pytest.raises(UserError, match=r"keys\.npy: the keys are not sorted, or one of them occurs twice"):
            read(folder)


@pytest.mark.parametrize(
    "header",
    [
        b"(" * 5000,
        b"{'descr': '|S12', 'fortran_order': False, 'shape': (999999999999,), }",
        b"{'descr': '|S0', 'fortran_order': False, 'shape': (999999999999,), }",
        b"{'descr': '|S12', 'fortran_order': False, 'shape': (13, 1), }",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (13,), }",
        b"\0",
    ],
)
def test_a_header_that_lies_is_refused_before_memory_is_allocated(folder: Path, header: bytes) -> None:
    for name in (MAPS, KEYS, CRCS):
        whole = (folder / name).read_bytes()
        lie = b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header
        (folder / name).write_bytes(lie + whole[-13 * 12 :])
        for read in (open_store, begin):
            with pytest.raises(UserError, match=name):
                read(folder)
        (folder / name).write_bytes(whole)


def test_arrays_of_another_type_or_length_are_refused(folder: Path) -> None:
    crcs, no_keys = np.load(folder / CRCS), np.load(folder / KEYS)[:0]
    for name, array, found in (
        (CRCS, crcs.astype(np.int64), r"found .*int64; expected \[13\] of uint32"),
        (CRCS, np.append(crcs, crcs[:1]), r"found \[14\].*; expected \[13\]"),
        (KEYS, no_keys, "found no key"),
    ):
        replace_file(folder, name, npy(array))
        with pytest.raises(UserError, match=f"{name}: {found}"):
            open_store(folder)


@pytest.mark.parametrize("name", [MAPS, KEYS, CRCS, "manifest.json"])
def test_something_else_in_place_of_a_file_is_refused(folder: Path, name: str) -> None:
    """Nothing, an empty file, half of it and more, JSON of other kinds, and a pipe, which must not block."""
    whole = (folder / name).read_bytes()
    for content in (b"", whole[: len(whole) // 2], whole + b"\0", b"[]", b"[" * 100_000, b'{"version": 1}', b"\xff"):
        (folder / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            open_store(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        open_store(folder)
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match=rf"{name} cannot be read \(it is no"):
        open_store(folder)


@pytest.mark.parametrize(("class_names", "wrong"), [(CLASSES, K), (["class3"], 40_000)])
def test_a_class_id_out_of_range_behind_a_valid_crc_is_refused(
    folder: Path, class_names: list[str], wrong: int
) -> None:
    """Pooling would write outside its target: on a GPU, an assert in the device."""
    maps, crcs = np.load(folder / MAPS), np.load(folder / CRCS)
    maps[1]["classes"][2, 3, 5] = wrong
    crcs[1] = crc32(maps[1].tobytes(), crc32(NAMES[1]))
    for name, array in ((MAPS, maps), (CRCS, crcs)):
        replace_file(folder, name, npy(array))
    store = open_store(folder, class_names=class_names)
    with pytest.raises(UserError, match=rf"record 1: found the class id {wrong}; expected ids in 0\.\.29"):
        store.read(1)
    with pytest.raises(UserError, match=rf"record 1: found the class id {wrong} in the cell at row 3, column 5"):
        check_one_per_class(store, np.array([0, *[1] * (len(NAMES) - 1)]))


# Writing


def test_maps_that_the_store_cannot_hold_are_not_written(tmp_path: Path) -> None:
    writer = begin(tmp_path / "store")
    with pytest.raises(UserError, match="found the class id 30 in the cell at row 0"):
        writer.write(1, LabelMap(random_map(1).scores, np.full(SHAPE, 30)))
    with pytest.raises(UserError, match=r"label map of n00/\S+ has scores beyond 65,504"):
        writer.write(0, LabelMap(np.full(SHAPE, 7e4, np.float32), random_map(0).classes))


def assert_same_files(first: Path, second: Path) -> None:
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (first, second)]
    assert contents[0] == contents[1]


def test_an_interrupted_store_continues_and_ends_with_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    writer = begin(tmp_path / "second")
    for row in (7, 2, 9):
        writer.write(row, random_map(row))
    writer.close()
    maps = np.load(tmp_path / "second" / MAPS, mmap_mode="r+")
    maps["scores"][9, 0, 0, 0] += 1  # as a power failure may leave it
    del maps
    again = PackedWriter(tmp_path / "second", NAMES, MANIFEST)
    done = again.begin()
    assert np.flatnonzero(done).tolist() == [2, 7]
    for row in np.flatnonzero(~done).tolist():
        again.write(row, random_map(row))
    again.commit({})
    assert_same_files(folder, tmp_path / "second")


def test_a_store_that_was_killed_while_its_files_were_made_continues(tmp_path: Path, folder: Path) -> None:
    begin(tmp_path / "second")
    (tmp_path / "second" / MAPS).unlink()
    np.save(tmp_path / "second" / CRCS, np.zeros(3, "<u4"))
    assert_same_files(folder, write_store(tmp_path / "second"))


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    """A thesis, an array of a common name, a draft; temporary files of killed processes are removed from a store."""
    for folder in (tmp_path / "new", tmp_path / "other"):
        folder.mkdir()
        (folder / ".draft.tmp").write_text("years of work")
        (folder / f".{MAPS}.123.tmp").touch()
    np.save(tmp_path / "other" / KEYS, np.arange(5))
    begin(tmp_path / "new")
    with pytest.raises(UserError, match=r"other is not empty: it contains keys\.npy(.|\n)*a new or empty folder"):
        begin(tmp_path / "other")
    assert np.load(tmp_path / "other" / KEYS).tolist() == [0, 1, 2, 3, 4]
    assert sorted(path.name for path in tmp_path.rglob(".*")) == [".draft.tmp", ".draft.tmp", f".{MAPS}.123.tmp"]
