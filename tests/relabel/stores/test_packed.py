"""The packed store: what it reads, that nothing damaged is read silently, that it is whole or absent."""

import io
import json
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relabel.label_map import LabelMap
from relabel.stores.manifest import Manifest, read_manifest
from relabel.stores.packed import CRCS, KEYS, MAPS, PackedStore, damaged_files, find_rows, record_crcs, sha256_of
from relabel.stores.packed_writer import PackedWriter
from relabel.stores.pt_folder import write_label_map
from relabel.stores.store import check_one_per_class, check_present, keys_of, open_label_store, sorted_keys
from tests.strategies import KEY_LISTS, SEEDS
from utils.errors import UserError

K, SHAPE = 30, (3, 4, 6)
CLASSES = [f"class{i}" for i in range(K)]
NAMES = sorted_keys([f"n{i % 4:02d}/image.{i}" for i in range(12)] + ["n00/größe"])
MANIFEST = Manifest(form="packed", maps=len(NAMES), k=3, h=4, w=6, class_names=CLASSES, made_by={"teacher": "one"})


def random_map(seed: int) -> LabelMap:
    return LabelMap.from_dense(np.random.default_rng(seed).normal(size=(K, 4, 6)).astype(np.float16), 3)


def begin(folder: Path, manifest: Manifest = MANIFEST, keys: np.ndarray = NAMES) -> PackedWriter:
    folder.mkdir(exist_ok=True)
    writer = PackedWriter(folder, keys, manifest)
    writer.begin()
    writer.open()
    return writer


def npy(array: np.ndarray) -> bytes:
    """What numpy.save writes."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    writer = begin(tmp_path / "store")
    for row in reversed(range(len(NAMES))):
        writer.write(row, random_map(row))
    writer.commit({})
    return tmp_path / "store"


def assert_map(found: LabelMap, seed: int) -> None:
    np.testing.assert_array_equal(found.scores, random_map(seed).scores)
    np.testing.assert_array_equal(found.classes, random_map(seed).classes)


# Reading


def test_each_row_is_its_keys_map_whatever_the_order(folder: Path) -> None:
    order = np.random.default_rng(0).permutation(len(NAMES))[:7]
    store = open_label_store(folder, NAMES[order], CLASSES)
    check_present(store, Path)  # type: ignore[arg-type]
    for row, seed in enumerate(order):
        assert_map(store.read(row), seed)
        store.check(row)


@given(KEY_LISTS, st.data())
def test_a_row_is_found_as_in_a_dict(store_keys: list[str], data: st.DataObject) -> None:
    keys = data.draw(st.permutations(store_keys)) + data.draw(KEY_LISTS)
    keys = data.draw(st.permutations(list(dict.fromkeys(keys))))[: data.draw(st.integers(1, 9))]
    skipped = data.draw(st.sets(st.sampled_from(store_keys)))
    place = {key: row for row, key in enumerate(sorted(store_keys, key=os.fsencode)) if key not in skipped}
    found = find_rows(sorted_keys(store_keys), np.array([os.fsencode(key) for key in keys]), sorted_keys([*skipped]))
    assert [place.get(key, -1) for key in keys] == (list(range(len(keys))) if found is None else found.tolist())


@given(KEY_LISTS, st.integers(1, 40), SEEDS)
def test_the_crc_of_a_record_follows_from_that_of_key_and_record(keys: list[str], size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    records = [rng.bytes(size) for _ in keys]
    written = [crc32(record, crc32(os.fsencode(key))) for key, record in zip(keys, records, strict=True)]
    found = record_crcs(np.array(written, np.uint32), np.array([os.fsencode(key) for key in keys]), size)
    assert found.tolist() == [crc32(record) for record in records]


def test_numpy_alone_can_read_it(folder: Path) -> None:
    maps, keys = np.load(folder / MAPS), np.load(folder / KEYS)
    assert keys.tolist() == sorted(keys.tolist()) and os.fsdecode(keys[4]) == os.fsdecode(NAMES[4])
    np.testing.assert_array_equal(maps["scores"][4], random_map(4).scores)
    np.testing.assert_array_equal(maps["classes"][4], random_map(4).classes)


def test_missing_images_are_told(folder: Path) -> None:
    store = open_label_store(folder, sorted_keys(["n00/image.0", "n00/other", "zzz/last"]), CLASSES)
    assert store.missing().tolist() == [1, 2]
    with pytest.raises(UserError, match=r"2 of 3 images have no label map\. The first: image 1\.jpg"):
        check_present(store, lambda row: Path(f"{row}.jpg"))
    with pytest.raises(UserError, match="holds no label map of row 1 of the images"):
        store.read(1)


def test_ids_are_translated_by_name(folder: Path) -> None:
    wanted = ["class29", "class3"]
    store = open_label_store(folder, NAMES, wanted)
    for row in range(len(NAMES)):
        expected = random_map(row).to_dense(K, fill=-7)[[29, 3]]
        np.testing.assert_array_equal(store.read(row).to_dense(2, fill=-7), expected)
    with pytest.raises(UserError, match=r"store does not know 1 of the data's 2 classes, the first: 'zebra'"):
        open_label_store(folder, NAMES, ["class1", "zebra"])


def test_ids_beyond_int16_are_kept(tmp_path: Path) -> None:
    names = [str(i) for i in range(65_535)]
    manifest = Manifest(form="packed", maps=1, k=3, h=1, w=2, class_names=names, made_by={})
    ids = np.array([40_000, 32_768, 65_534]).reshape(3, 1, 1).repeat(2, axis=2)
    writer = begin(tmp_path / "store", manifest, sorted_keys(["a"]))
    writer.write(0, LabelMap(np.ones((3, 1, 2), np.float16), ids))
    writer.commit({})
    np.testing.assert_array_equal(open_label_store(tmp_path / "store", sorted_keys(["a"]), names).read(0).classes, ids)


def test_more_classes_than_ids_are_refused(tmp_path: Path) -> None:
    names = [str(i) for i in range(65_536)]
    manifest = Manifest(form="packed", maps=1, k=3, h=1, w=2, class_names=names, made_by={})
    with pytest.raises(UserError, match=r"at most 65,535 classes, and these have 65,536\. Write .*--format pt"):
        PackedWriter(tmp_path, sorted_keys(["a"]), manifest)


def test_a_pickled_store_is_small_and_opens_its_file_anew(tmp_path: Path) -> None:
    keys = sorted_keys([f"n{i // 100:05d}/image_{i:07d}" for i in range(20_000)])
    manifest = Manifest(form="packed", maps=len(keys), k=1, h=1, w=2, class_names=["a", "b"], made_by={})
    writer = begin(tmp_path / "store", manifest, keys)
    writer.write(12_345, LabelMap(np.full((1, 1, 2), 7, np.float16), np.ones((1, 1, 2), np.int16)))
    writer.commit({})
    store = open_label_store(tmp_path / "store", keys, ["a", "b"])
    store.read(12_345)
    assert len(pickle.dumps(store)) < 12 * len(keys) + 2000
    assert pickle.loads(pickle.dumps(store)).read(12_345).scores.tolist() == [[[7, 7]]]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_every_kind_read_it(folder: Path, method: str) -> None:
    for row, key in enumerate(NAMES.tolist()):
        write_label_map(folder.parent / "files", os.fsdecode(key), random_map(row))
    packed, files = (open_label_store(path, NAMES, CLASSES) for path in (folder, folder.parent / "files"))
    packed.read(0)  # a forked worker inherits the open file
    with multiprocessing.get_context(method).Pool(1) as pool:
        for store in (packed, files):
            for row, found in enumerate(pool.map(store.read, range(len(NAMES)))):
                assert_map(found, row)


def test_rows_are_found_as_a_dictionary_finds_them() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 50):
        store_keys = sorted_keys([f"k{i}" for i in rng.choice(100, size, replace=False)])
        wanted = np.array([f"k{i}".encode() for i in rng.permutation(100)])
        table = {key: row for row, key in enumerate(store_keys.tolist())}
        rows = find_rows(store_keys, wanted, np.zeros(0, np.bytes_))
        assert rows is not None and rows.tolist() == [table.get(key, -1) for key in wanted.tolist()]
        assert find_rows(store_keys, store_keys.copy(), np.zeros(0, np.bytes_)) is None


# Damage


def write_array(folder: Path, name: str, content: bytes) -> None:
    """A file of a store and a manifest that is content with it, as somebody may write who means no harm."""
    manifest = read_manifest(folder)
    assert manifest is not None
    (folder / name).write_bytes(content)
    hashes = {name: sha256_of(folder / name) for name in (MAPS, KEYS, CRCS)}
    manifest.model_copy(update={"sha256": hashes}).write(folder / "manifest.json")


def test_no_flipped_bit_is_read_silently(folder: Path) -> None:
    """Every bit of a record belongs to its CRC; and a CRC that was hit itself is found as well."""
    rng = np.random.default_rng(0)
    for name in (MAPS, CRCS):
        whole = (folder / name).read_bytes()
        start = len(whole) - (len(NAMES) * (4 * 3 * 4 * 6 if name == MAPS else 4))
        for bit in rng.choice(np.arange(8 * start, 8 * len(whole)), 25, replace=False).tolist():
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            if name == CRCS:
                (folder / name).write_bytes(damaged)
                with pytest.raises(UserError, match=r"crc32\.npy is not the one that manifest\.json was written with"):
                    open_label_store(folder, NAMES, CLASSES)
            write_array(folder, name, bytes(damaged))
            store = open_label_store(folder, NAMES, CLASSES)
            row = (bit // 8 - start) * len(NAMES) // (len(whole) - start)
            with pytest.raises(UserError, match=rf"{MAPS}, record {row}: the label map does not fit its CRC"):
                store.read(row)
            assert_map(store.read((row + 1) % len(NAMES)), (row + 1) % len(NAMES))
        write_array(folder, name, whole)


def test_the_maps_of_a_store_with_other_classes_are_found_out(folder: Path, tmp_path: Path) -> None:
    """The same images and shape, another order of the classes: maps and checksums fit each other, copied together."""
    other = begin(tmp_path / "other", MANIFEST.model_copy(update={"class_names": CLASSES[::-1]}))
    for row in range(len(NAMES)):
        other.write(row, random_map(100 + row))
    other.commit({})
    for name in (MAPS, CRCS):
        shutil.copy(tmp_path / "other" / name, folder / name)
    with pytest.raises(UserError, match=r"crc32\.npy is not the one that manifest\.json was written with"):
        open_label_store(folder, NAMES, CLASSES)


def test_a_map_of_another_image_is_found_out(folder: Path) -> None:
    """Two records and their CRCs exchanged: each is whole, but belongs to another key."""
    for name in (MAPS, CRCS):
        array = np.load(folder / name)
        array[[2, 5]] = array[[5, 2]]
        write_array(folder, name, npy(array))
    store = open_label_store(folder, NAMES, CLASSES)
    for row in (2, 5):
        with pytest.raises(UserError, match="does not fit its CRC"):
            store.read(row)


def test_a_file_cut_short_while_it_is_open(folder: Path) -> None:
    store = open_label_store(folder, NAMES, CLASSES)
    os.truncate(folder / MAPS, (folder / MAPS).stat().st_size - 10)
    assert_map(store.read(3), 3)
    with pytest.raises(UserError, match="the label map ends before its end"):
        store.read(len(NAMES) - 1)


@pytest.mark.parametrize("name", [MAPS, KEYS, CRCS])
def test_truncated_and_missing_files_are_refused_at_the_start(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    for length in (0, 5, 40, 100, len(whole) // 2, len(whole) - 1):
        (folder / name).write_bytes(whole[:length])
        with pytest.raises(UserError, match=rf"{name}.*(fetch it again)"):
            open_label_store(folder, NAMES, CLASSES)
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"{name}.*(fetch it again)"):
        open_label_store(folder, NAMES, CLASSES)


def test_the_hashes_tell_which_file_was_changed(folder: Path) -> None:
    manifest = Manifest.model_validate(json.loads((folder / "manifest.json").read_text()))
    assert damaged_files(folder, manifest) == []
    keys = bytearray((folder / KEYS).read_bytes())
    keys[-1] ^= 1
    (folder / KEYS).write_bytes(keys)
    assert damaged_files(folder, manifest) == [KEYS]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "found version 2 of the format; expected 1"),
        ({"maps": "12"}, "maps: Input should be a valid integer"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"class_names": ["a", "a"]}, "a class is named twice"),
        ({"k": 0}, "k: Input should be greater"),
        ({"k": 2}, r"maps\.npy: found .* records"),
        ({"maps": 12}, r"keys\.npy|maps\.npy"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(folder: Path, change: dict[str, object], message: str) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **change, "sha256": {MAPS: content["sha256"][MAPS]}}))
    with pytest.raises(UserError, match=message):
        open_label_store(folder, NAMES, CLASSES)


def test_a_manifest_that_somebody_changed_is_refused(folder: Path) -> None:
    """Of two classes exchanged, nothing else could tell: every map would be read as of other classes."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "class_names": [CLASSES[1], CLASSES[0], *CLASSES[2:]]}))
    with pytest.raises(UserError, match=r"manifest\.json: what it says is not what its sha256 belongs to"):
        open_label_store(folder, NAMES, CLASSES)


def test_however_a_manifest_is_laid_out_it_is_the_same(folder: Path) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(content.items())), indent=None))
    assert_map(open_label_store(folder, NAMES, CLASSES).read(5), 5)
    del content["sha256"]["manifest.json"]  # older stores do not have it
    path.write_text(json.dumps(content))
    assert_map(open_label_store(folder, NAMES, CLASSES).read(5), 5)


@pytest.mark.parametrize("order", [[1, 0, *range(2, 13)], [0, 0, *range(2, 13)]], ids=["shuffled", "twice"])
def test_keys_that_are_not_sorted_are_refused(folder: Path, order: list[int]) -> None:
    """Records and checksums follow their keys: nothing but the search for a key goes wrong."""
    for name in (MAPS, KEYS, CRCS):
        np.save(folder / name, np.load(folder / name)[order])
    for read in (lambda: open_label_store(folder, NAMES, CLASSES), lambda: keys_of(folder)):
        with pytest.raises(UserError, match=r"keys\.npy: the keys are not sorted, or one stands there twice"):
            read()


@pytest.mark.parametrize(
    "header",
    [
        b"(" * 5000,
        b"{'descr': '|S12', 'fortran_order': False, 'shape': (999999999999,), }",
        b"{'descr': '|S0', 'fortran_order': False, 'shape': (999999999999,), }",
        b"{'descr': '|S12', 'fortran_order': False, 'shape': (-1,), }",
        b"{'descr': '|S12', 'fortran_order': False, 'shape': (13, 1), }",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (13,), }",
        b"\0",
        b'"""',
    ],
)
def test_a_header_that_lies_is_refused(folder: Path, header: bytes) -> None:
    """Before any memory is taken."""
    for name in (MAPS, KEYS, CRCS):
        whole = (folder / name).read_bytes()
        lie = b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header
        (folder / name).write_bytes(lie + whole[-13 * 12 :])
        for read in (lambda: open_label_store(folder, NAMES, CLASSES), lambda: begin(folder)):
            with pytest.raises(UserError, match=name):
                read()
        (folder / name).write_bytes(whole)


def test_an_archive_in_the_place_of_an_array_is_refused(folder: Path) -> None:
    np.savez(folder / "a.npz", a=np.load(folder / KEYS))
    (folder / "a.npz").rename(folder / KEYS)
    with pytest.raises(UserError, match=r"keys\.npy cannot be read"):
        open_label_store(folder, NAMES, CLASSES)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"version": 1}', "\udcff"])
def test_a_manifest_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"manifest\.json"):
        open_label_store(folder, NAMES, CLASSES)


def test_wrong_numbers_behind_a_right_crc_are_found_by_check(folder: Path) -> None:
    maps, crcs = np.load(folder / MAPS), np.load(folder / CRCS)
    maps[1]["classes"] = 30
    crcs[1] = crc32(maps[1].tobytes(), crc32(NAMES[1]))
    for name, array in ((MAPS, maps), (CRCS, crcs)):
        write_array(folder, name, npy(array))
    store = open_label_store(folder, NAMES, CLASSES)
    with pytest.raises(UserError, match=r"record 1: found the class id 30 in the cell at row 0.*expected ids"):
        store.check(1)
    with pytest.raises(UserError, match="record 1: found the class id 30"):
        check_one_per_class(store, np.array([0, *[1] * (len(NAMES) - 1)]))


# Writing


def test_wrong_numbers_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found the class id 30 in the cell at row 0"):
        begin(tmp_path / "store").write(1, LabelMap(random_map(1).scores, np.full((3, 4, 6), 30)))


def test_without_its_manifest_there_is_no_store(folder: Path, tmp_path: Path) -> None:
    writer = begin(tmp_path / "half")
    writer.write(0, random_map(0))
    writer.close()
    for path in (tmp_path / "half", folder):
        (path / "manifest.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"half is no whole packed store.*interrupted, give the same command again"):
        open_label_store(tmp_path / "half", NAMES, CLASSES)
    with pytest.raises(UserError, match="no whole packed store"):
        PackedStore(folder, NAMES, CLASSES)


def test_an_interrupted_store_goes_on_and_ends_with_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    writer = begin(tmp_path / "second")
    for row in (7, 2, 9):
        writer.write(row, random_map(row))
    writer.close()
    maps = np.load(tmp_path / "second" / MAPS, mmap_mode="r+")
    maps["scores"][9, 0, 0, 0] += 1  # as a power failure may leave it
    del maps
    again = begin(tmp_path / "second")
    done = again.finished()
    assert np.flatnonzero(done).tolist() == [2, 7]
    for row in np.flatnonzero(~done).tolist():
        again.write(row, random_map(row))
    again.commit({})
    assert {p.name for p in (tmp_path / "second").iterdir()} == {p.name for p in folder.iterdir()}
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


def test_another_job_does_not_go_on_with_it(tmp_path: Path) -> None:
    begin(tmp_path / "store").close()
    with pytest.raises(UserError, match=r'made otherwise.*:\n  made_by\.teacher: "one", not "two"\nGive the settings'):
        begin(tmp_path / "store", MANIFEST.model_copy(update={"made_by": {"teacher": "two"}}))
    keys = NAMES.copy()
    keys[-1] = b"zzz"
    with pytest.raises(UserError, match=r"for the label maps of other images: of 13 that are not these 13 by name"):
        begin(tmp_path / "store", keys=keys)


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"store is taken: it holds thesis\.tex; expected a new or empty folder"):
        begin(tmp_path / "store")
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["thesis.tex"]


def test_skipped_images_leave_no_record(tmp_path: Path) -> None:
    writer = begin(tmp_path / "store")
    skipped = {os.fsdecode(NAMES[row]): "it is damaged" for row in (0, 6, 12)}
    for row in range(len(NAMES)):
        if row not in (0, 6, 12):
            writer.write(row, random_map(row))
    writer.commit(skipped)
    store = open_label_store(tmp_path / "store", NAMES, CLASSES)
    assert store.missing().tolist() == [0, 6, 12]
    for row in set(range(len(NAMES))) - {0, 6, 12}:
        assert_map(store.read(row), row)
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert manifest["skipped"] == skipped and manifest["maps"] == 10
    assert len(np.load(tmp_path / "store" / MAPS)) == 13  # empty records: the store can be begun again for them
    again = begin(tmp_path / "store")
    assert np.flatnonzero(~again.finished()).tolist() == [0, 6, 12]


def test_scores_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    writer = begin(tmp_path / "store")
    huge = LabelMap(np.full(SHAPE, 7e4, np.float32), random_map(0).classes)
    with pytest.raises(UserError, match=r"label map of n00/größe has scores beyond 65,504|n00/image"):
        writer.write(0, huge)


def test_a_copy_of_a_store_is_a_store(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "elsewhere")
    shutil.rmtree(folder)
    assert_map(open_label_store(tmp_path / "elsewhere", NAMES, CLASSES).read(3), 3)


def test_a_store_without_keys_is_refused(folder: Path) -> None:
    for name in (MAPS, KEYS, CRCS):
        write_array(folder, name, npy(np.load(folder / name)[:0]))
    manifest = read_manifest(folder)
    assert manifest is not None
    manifest.model_copy(update={"maps": 0, "sha256": {}}).write(folder / "manifest.json")
    with pytest.raises(UserError, match=r"keys\.npy: found no key"):
        open_label_store(folder, NAMES, CLASSES)


@pytest.mark.parametrize("change", [lambda crcs: crcs.astype(np.int64), lambda crcs: np.append(crcs, crcs[:1])])
def test_checksums_of_another_type_or_number_are_refused(
    folder: Path, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    write_array(folder, CRCS, npy(change(np.load(folder / CRCS))))
    with pytest.raises(UserError, match=r"crc32\.npy: found .*; expected a list of 13"):
        open_label_store(folder, NAMES, CLASSES)


@pytest.mark.parametrize("name", [MAPS, KEYS, CRCS, "manifest.json"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match=rf"{name} cannot be read \(it is no regular file\)"):
        open_label_store(folder, NAMES, CLASSES)


def test_a_map_of_more_scores_than_memory_is_refused(folder: Path) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    content |= {"k": 2**12, "h": 2**12, "w": 2**12, "sha256": {}}
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"a map has more than 268,435,456 scores"):
        open_label_store(folder, NAMES, CLASSES)


def test_arrays_of_somebody_else_are_not_overwritten(tmp_path: Path) -> None:
    """Their names are common ones."""
    (tmp_path / "results").mkdir()
    np.save(tmp_path / "results" / KEYS, np.arange(5))
    with pytest.raises(UserError, match=r"results is taken: it holds keys\.npy"):
        begin(tmp_path / "results")
    assert np.load(tmp_path / "results" / KEYS).tolist() == [0, 1, 2, 3, 4]


def test_other_peoples_drafts_are_left_alone(tmp_path: Path) -> None:
    for folder in (tmp_path / "new", tmp_path / "taken"):
        folder.mkdir()
        (folder / ".draft.tmp").write_text("years of work")
        (folder / f".{MAPS}.123.tmp").touch()  # of a process that was killed
    (tmp_path / "taken" / "thesis.tex").touch()
    begin(tmp_path / "new")
    with pytest.raises(UserError, match=r"taken is taken: it holds thesis\.tex"):
        begin(tmp_path / "taken")
    assert sorted(path.name for path in tmp_path.rglob(".*")) == [".draft.tmp", ".draft.tmp", f".{MAPS}.123.tmp"]


def test_a_store_that_was_killed_while_its_files_were_made_goes_on(tmp_path: Path, folder: Path) -> None:
    begin(tmp_path / "second")
    (tmp_path / "second" / MAPS).unlink()
    np.save(tmp_path / "second" / CRCS, np.zeros(3, "<u4"))
    writer = begin(tmp_path / "second")
    for row in range(len(NAMES)):
        writer.write(row, random_map(row))
    writer.commit({})
    assert (tmp_path / "second" / MAPS).read_bytes() == (folder / MAPS).read_bytes()
