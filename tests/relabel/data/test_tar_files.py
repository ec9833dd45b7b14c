"""Tar files: walked as tarfile reads them; damaged, changed and compressed ones; their index."""

import gzip
import io
import os
import pickle
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relabel.data.sources import open_images
from relabel.data.tar_files import LINK, walk_tar
from relabel.data.tar_index import FOLDER
from tests.image_forms import make_tar
from tests.strategies import FEW
from utils.errors import UserError

PARTS = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=60).filter(
    lambda part: part not in (".", "..")
)
NAMES = st.lists(PARTS, min_size=1, max_size=6).map("/".join).filter(lambda name: not name.endswith(".tar"))
MEMBERS = st.dictionaries(NAMES, st.binary(max_size=1500) | st.sampled_from([b"", b"\0" * 512]), max_size=5)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(path: Path, members: dict[str, bytes], form: int, links: bool) -> None:
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE) if links else ():
                extra = tarfile.TarInfo(f"{name[:30]}.{kind.decode()}")
                extra.type, extra.linkname = kind, name[:90]
                tar.addfile(extra)


@given(MEMBERS, st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT]), st.booleans())
@FEW
def test_members_are_those_that_tarfile_reads(members: dict[str, bytes], form: int, links: bool) -> None:
    """Long names of every form, the prefix of ustar, unicode, links, empty files; offsets and sizes."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        try:
            write(path, members, form, links)
        except ValueError:  # a name that ustar cannot hold
            return
        with tarfile.open(path) as tar:
            entries = [entry for entry in tar if not entry.isdir()]
        offsets = [
            (e.name.removeprefix("./").lstrip("/"), e.offset_data, e.size if e.isreg() else LINK) for e in entries
        ]
        assert list(walk_tar(path)) == offsets


def test_a_size_in_base_256(tmp_path: Path) -> None:
    """As GNU tar writes it for more than 8 GiB."""
    tar = make_tar(tmp_path / "a.tar", {"a/1.png": b"one", "a/2.png": b"two"})
    content = bytearray(tar.read_bytes())
    content[124:136] = b"\x80" + (3).to_bytes(11)
    content[148:156] = b"%06o\0 " % (sum(content[:148]) + 8 * 32 + sum(content[156:512]))
    tar.write_bytes(content)
    assert list(walk_tar(tar)) == [("a/1.png", 512, 3), ("a/2.png", 1536, 3)]


def cut(size: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:size]


def sparse(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[156:157] = b"S"
    changed[148:156] = b"%06o\0 " % (sum(changed[:148]) + 8 * 32 + sum(changed[156:512]))
    return bytes(changed)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut(1300), "truncated: it ends at byte 1,300"),  # in a header
        (cut(600), "truncated: it ends at byte 600"),  # in a file
        (cut(2048), "truncated: it ends at byte 2,048"),  # between files
        (cut(0), "truncated: it ends at byte 0"),
        (lambda content: content[:1024] + b"\xff" * len(content[1024:]), "no header of a tar file at byte 1,024"),
        (lambda content: b"not a tar file" * 100, "no header of a tar file at byte 0"),
        (gzip.compress, r"is compressed; .* once: gunzip "),
        (lambda content: content[:1024] + bytes(3 << 20), "more zeros than a tar file ends with at byte 1,024"),
        (lambda content: content[:1024] + bytes(20_480) + content[1024:], "more zeros .* at byte 1,024"),
        (lambda content: content + b"rest", "bytes after the end mark that are no header at byte 10,240"),
        (sparse, "Make the tar file again without --sparse"),
    ],
)
def test_a_damaged_tar_file_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    """And no index of it is left."""
    tar = make_tar(tmp_path / "train.tar", {"a/1.png": b"one", "b/2.png": b"two"})
    tar.write_bytes(damage(tar.read_bytes()))
    with pytest.raises(UserError, match=message):
        open_images(tar)
    assert [path.name for path in tmp_path.iterdir()] == ["train.tar"]


def test_what_follows_the_end_mark(tmp_path: Path) -> None:
    """Padding of any usual length, and further tar files, joined by cat."""
    one, two = ({f"{name}/{i}.png": b"x" * i for i in range(3)} for name in ("a", "b"))
    parts = [make_tar(tmp_path / f"{i}.tar", members).read_bytes() for i, members in enumerate((one, two))]
    both = tmp_path / "both.tar"
    both.write_bytes(parts[0] + parts[1][:-512] + bytes(512 + (1 << 19) - len(parts[1])))
    assert [name for name, *_ in walk_tar(both)] == [*one, *two]
    assert open_images(both).path(4).read_bytes() == b"x"


@pytest.mark.parametrize("name", ["a.tar.gz", "it's.tar", "a.tgz.tar"])
def test_the_command_that_decompresses(tmp_path: Path, name: str) -> None:
    tar = make_tar(tmp_path / "plain", {"a/1.png": b"one"})
    (tmp_path / name).write_bytes(gzip.compress(tar.read_bytes()))
    with pytest.raises(UserError, match="is compressed") as raised:
        open_images(tmp_path / name)
    subprocess.run(["sh", "-c", str(raised.value).rpartition("once: ")[2]], check=True)
    (made,) = {*tmp_path.glob("*.tar")} - {tmp_path / name}
    assert len(open_images(made)) == 1


@pytest.mark.parametrize("record", [b"0 path=x\n", b"5x path=\n", b"11 size=one\n", b"9 nothing"])
def test_a_damaged_extended_header(tmp_path: Path, record: bytes) -> None:
    tar = tmp_path / "a.tar"
    with tarfile.open(tar, "w") as file:
        entry = tarfile.TarInfo("pax")
        entry.type, entry.size = tarfile.XHDTYPE, len(record)
        file.addfile(entry, io.BytesIO(record))
        file.addfile(tarfile.TarInfo("a/1.png"))
    with pytest.raises(UserError, match="found no header of a tar file"):
        list(walk_tar(tar))


def test_a_tar_file_that_shrinks_while_it_is_used(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "train.tar", {"a/1.png": b"one", "b/2.png": b"two"})
    images = open_images(tar)
    os.truncate(tar, 1200)
    assert images.path(0).read_bytes() == b"one"
    with pytest.raises(OSError, match="has become shorter"):
        images.path(1).read_bytes()


def test_the_index_follows_the_tar_file(tmp_path: Path, cache: Path) -> None:
    """It is read again as long as size and time are the same; a damaged one is made again."""
    tar = make_tar(tmp_path / "train.tar", {"a/1.png": b"one", "b/2.png": b"two"})
    assert len(open_images(tar)) == 2
    (folder,) = (tmp_path / FOLDER).iterdir()
    for name in ("names.npy", "offset.npy", "index.json"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-9])
        assert open_images(tar).path(1).read_bytes() == b"two"
    made = (folder / "names.npy").stat().st_mtime_ns
    assert len(open_images(tar)) == 2 and (folder / "names.npy").stat().st_mtime_ns == made
    make_tar(tar, {"a/1.png": b"one", "b/2.png": b"two", "b/3.png": b"three"})
    assert open_images(tar).path(2).read_bytes() == b"three"
    about = tar.stat()
    make_tar(tar, {"a/long.png": b"", "a/1.png": b"ein", "b/3.png": b"drei"})  # of the same size and time
    os.utime(tar, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert tar.stat().st_size == about.st_size and open_images(tar).path(2).read_bytes() == b"drei"
    assert not cache.exists()


def test_indexes_that_cannot_be_used_again_are_removed(tmp_path: Path) -> None:
    tars = [make_tar(tmp_path / name, {"a/1.png": b"one"}) for name in ("train-0.tar", "train-1.tar")]
    for source in (tmp_path / "train-0.tar", tmp_path / "train-1.tar"):
        open_images(source)
    make_tar(tars[0], {"a/2.png": b"one", "a/3.png": b"two"})
    open_images(f"{tmp_path}/train-*.tar")
    assert len([*(tmp_path / FOLDER).iterdir()]) == 2  # of both together, and of train-1.tar


def test_the_index_of_a_read_only_folder(tmp_path: Path, cache: Path) -> None:
    """A file in the way stands for a disk that cannot be written: root may write anywhere."""
    tar = make_tar(tmp_path / "train.tar", {"a/1.png": b"one", "b/2.png": b"two"})
    (tmp_path / FOLDER).touch()
    assert [open_images(tar).path(1).read_bytes() for _ in range(2)] == [b"two", b"two"]
    assert len([*cache.rglob("index.json")]) == 1


@pytest.mark.parametrize("beside", [True, False])
def test_other_processes_map_the_index_of_the_first(tmp_path: Path, beside: bool) -> None:
    """Also one in the cache folder; parts of a list are sent by value, and a machine without the index is told."""
    tar = make_tar(tmp_path / "train.tar", {f"train/ant/{i:03d}.png": bytes([i]) for i in range(200)})
    if not beside:
        (tmp_path / FOLDER).touch()
    images = open_images(tar)
    sent = pickle.dumps(images)
    assert len(sent) < 1500 < images.names.nbytes
    there = pickle.loads(sent)
    assert isinstance(there.names, np.memmap) and there.path(7).read_bytes() == b"\7"
    some = pickle.loads(pickle.dumps(images.take(np.array([7, 9]))))
    assert some.names.tolist() == images.names[[7, 9]].tolist() and some.path(1).read_bytes() == b"\x09"
    Path(str(there.names.filename)).unlink()
    with pytest.raises(UserError, match="XDG_CACHE_HOME"):
        pickle.loads(sent)


def test_what_a_tar_file_holds_besides_images(tmp_path: Path) -> None:
    tar = make_tar(
        tmp_path / "x.tar", {f"d/{n}": b"" for n in ("a/1.png", "b/2.png", "a/._1.png", "a/n.txt", ".c/3.png")}
    )
    with tarfile.open(tar, "a") as file:
        link = tarfile.TarInfo("d/b/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "2.png"
        file.addfile(link)
    found = open_images(tar)
    assert found.names.tolist() == [b"a/1.png", b"b/2.png"]
    assert found.described().endswith(
        "not used: 1 .txt file (d/a/n.txt), 1 link (d/b/link.png), 2 hidden files (d/a/._1.png)"
    )


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a/1.png": b"", "a/x/1.png": b""}, r"x.tar:a/1.png and \S+x.tar:a/x/1.png are both called a/1.png"),
        ({"1.jpg": b"", "1.cls": b"0", "2.jpg": b""}, r"a class for 1 of 2 images; the first without: \S+x.tar:2.jpg"),
        ({"1.jpg": b"", "2.jpg": b"", "2.cls": b"0"}, r"a class for 1 of 2 images; the first without: \S+x.tar:1.jpg"),
        ({f"{i}.jpg": b"" for i in "12"} | {"1.json": b'{"label": null}', "2.json": b'{"label": 0}'}, "class for 1 of"),
        ({"1.jpg": b"", "1.cls": b"0", "1.json": b"{"}, "1.json is not JSON"),
        ({"1.jpg": b"", "1.cls": b"../up"}, r"found the class '../up'; expected a name that a folder can have"),
        ({"1.txt": b""}, r"found no image in 1 tar file; .*found only 1 .txt file \(1.txt\)"),
        ({"1.txt": b"", "1.cls": b"3"}, "found only 1 .txt file"),
    ],
)
def test_tar_files_that_are_no_data_set(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_images(make_tar(tmp_path / "x.tar", members))


def test_samples_of_shards_that_are_not_one_image(tmp_path: Path) -> None:
    """Masks with a second extension belong to their image; keys that are only numbers are said."""
    good = {"00.jpg": b"0", "00.cls": b"ant", "00.seg.png": b"", "01.JPG": b"1", "01.cls": b"bee\n"}
    bad = {"02.jpg": b"", "02.png": b"", "02.cls": b"bee", "03.txt": b"", "03.cls": b"bee"}
    bad |= {"README": b"", ".04.jpg": b"", ".04.cls": b"bee"}
    images = open_images(make_tar(tmp_path / "x.tar", good | bad))
    assert images.class_names == ["ant", "bee"] and images.names.tolist() == [b"ant/00.jpg", b"bee/01.jpg"]
    assert "only numbered" in images.described()
    assert images.described().endswith(
        "not used: 1 multi-image sample (02), 1 imageless sample (03), 1 dotted .png file (00.seg.png), "
        "1 .txt file (03.txt), 1 extensionless file (README), 2 hidden files (.04.jpg)"
    )


def test_linked_classes_of_a_shard(tmp_path: Path) -> None:
    """Hard links, which tar writes for files that are the same one, are followed; symbolic links are refused."""
    for kind, target in ((tarfile.LNKTYPE, "x/1.cls"), (tarfile.SYMTYPE, "1.cls")):
        tar = make_tar(tmp_path / "x.tar", {"x/1.jpg": b"one", "x/1.cls": b"ant", "x/2.jpg": b"two"})
        with tarfile.open(tar, "a") as file:
            link = tarfile.TarInfo("x/2.cls")
            link.type, link.linkname = kind, target
            file.addfile(link)
        if kind == tarfile.LNKTYPE:
            assert open_images(tar).names.tolist() == [b"ant/1.jpg", b"ant/2.jpg"]
    with pytest.raises(UserError, match=r"found x/2.cls as a link; .*--dereference"):
        open_images(tar)


def test_names_that_are_numbers_in_folders_of_classes_are_not_lost(tmp_path: Path) -> None:
    for folder, lost in (("red fox", False), ("part", True)):
        members = {f"{folder}/0.jpg": b"", f"{folder}/0.cls": b"red fox"}
        assert ("only numbered" in open_images(make_tar(tmp_path / f"{folder}.tar", members)).described()) == lost
