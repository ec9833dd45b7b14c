"""Parquet files as ImageNet has them on the Hub, packed into shards under the names of the class folders."""

import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from relabel.__main__ import main
from relabel.data.sources import open_images
from tests.image_forms import WNIDS, files, plain_folders

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_folders(tmp_path_factory.mktemp("plain"))


def write(out: Path, rows: Sequence[tuple[bytes | None, str | None, int | None]], names: Sequence[str] = ()) -> None:
    """Write bytes, path and label of images, as the package datasets does: row groups, class names as metadata."""
    image = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    columns = [[{"bytes": data, "path": path} for data, path, _ in rows], [label for *_, label in rows]]
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pyarrow.schema({"image": image, "label": pyarrow.int64()}, metadata=metadata)
    out.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns, schema=schema), out, row_group_size=3)


def pack(source: Path | str, out: Path, workers: int = 0) -> None:
    main(["pack-images", str(source), str(out), "--num_workers", str(workers)])


def same_as_folders(shards: Path, folders: Path) -> bool:
    packed, expected = open_images(shards), open_images(folders)
    assert packed.names.tolist() == expected.names.tolist() and packed.labels.tolist() == expected.labels.tolist()
    assert packed.class_names == expected.class_names
    return all(packed.path(row).read_bytes() == expected.path(row).read_bytes() for row in range(len(packed)))


def test_imagenets_files_have_the_names_of_the_folders(plain: Path, tmp_path: Path) -> None:
    """The class id at the end of image.path is the class and no part of the key; the metadata have English names."""
    for split, name, parts in (("train", "train", 2), ("val", "validation", 1)):
        paths = sorted(files(plain, split), key=lambda path: path.stem[::-1])
        rows = [(p.read_bytes(), f"{p.stem}_{p.parent.name}.JPEG", WNIDS.index(p.parent.name)) for p in paths]
        for part in range(parts):
            write(
                tmp_path / "data" / f"{name}-{part:05d}-of-00002.parquet", rows[part::parts], ["tench", "fish", "shark"]
            )
        for workers in (0, 2):
            pack(f"{tmp_path}/data/{name}-*.parquet", tmp_path / str(workers) / split, workers)
        assert same_as_folders(tmp_path / "0" / split, plain / split)
        tars = [next((tmp_path / str(workers) / split).glob(f"{split}-*.tar")) for workers in (0, 2)]
        assert tars[0].read_bytes() == tars[1].read_bytes()


def test_class_names_come_from_the_metadata_where_the_paths_have_none(plain: Path, tmp_path: Path) -> None:
    paths = files(plain, "train")
    rows = [(path.read_bytes(), f"any/{path.name}", WNIDS.index(path.parent.name)) for path in paths]
    write(tmp_path / "mine" / "data" / "train.parquet", rows, WNIDS)
    pack(tmp_path / "mine", tmp_path / "train")
    assert same_as_folders(tmp_path / "train", plain / "train")


ROWS: dict[str, tuple[list[Any], str]] = {
    "no names": ([(b"", None, 0), (b"", "a.jpg", 0)], "1 of 2 images without a name"),
    "no class": ([(b"", "a.jpg", -1)], "1 of 1 images without a class"),
    "two classes of a label": ([(b"", f"a_{wnid}.JPEG", 0) for wnid in WNIDS], "has label 0, which other images have"),
    "no bytes": ([(None, "a.jpg", 0)], "but not its bytes"),
    "one name twice": ([(b"", "a.jpg", 0), (b"", "a.jpg", 0)], "both called"),
}


@pytest.mark.parametrize("case", ROWS)
def test_what_cannot_be_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    rows, message = ROWS[case]
    write(tmp_path / "in" / "train.parquet", rows)
    assert message in refused(capsys, tmp_path / "in", tmp_path / "out")


def refused(capsys: pytest.CaptureFixture[str], source: Path | str, out: Path) -> str:
    with pytest.raises(SystemExit, match="2"):
        pack(source, out)
    assert not out.exists()
    return capsys.readouterr().err


def test_files_that_are_not_what_is_expected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    for split in ("test", "train"):
        write(tmp_path / "hub" / f"{split}-0.parquet", [(b"", "a.jpg", 0)])
    assert f"Give '{tmp_path}/hub/test*.parquet' or " in refused(capsys, tmp_path / "hub", out)
    parquet.write_table(pyarrow.table({"img": [b""], "label": [0]}), tmp_path / "cifar.parquet")
    assert "found the columns img, label" in refused(capsys, tmp_path / "cifar.parquet", out)
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "cifar.parquet").read_bytes()[:-9])
    assert "cannot be read as a parquet file" in refused(capsys, tmp_path / "torn.parquet", out)


def test_pyarrow_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.parquet", [(b"", "a.jpg", 0)])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "pip install pyarrow" in refused(capsys, tmp_path / "a.parquet", tmp_path / "out")


def test_the_split_and_names_that_are_numbers(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """OUT's name chooses from a folder of both; names in folders of their classes are not lost."""
    image = files(plain, "train")[0].read_bytes()
    for split, count in (("train", 3), ("validation", 2)):
        rows: list[Any] = [(image, f"red fox/{i}.jpg", 0) for i in range(count)]
        write(tmp_path / "in" / "data" / f"{split}-0.parquet", rows, ["red fox"])
    pack(tmp_path / "in", tmp_path / "out" / "val")
    assert open_images(tmp_path / "out" / "val").names.tolist() == [b"red fox/0.jpg", b"red fox/1.jpg"]
    assert "only numbered" not in capsys.readouterr().out
    for source in (tmp_path / "in", f"{tmp_path}/in/data/*.parquet"):
        message = refused(capsys, source, tmp_path / "out" / "all")
        patterns = re.findall(r"'(\S+)'", message)
        for i, pattern in enumerate(patterns):
            pack(pattern, tmp_path / "out" / f"{i}")
        assert [len(open_images(tmp_path / "out" / f"{i}")) for i in range(len(patterns))] == [3, 2]
        shutil.rmtree(tmp_path / "out")
