"""JSON files: whole or not at all, and one clear error for whatever a file holds."""

import os
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.files import read_json, write_json


def test_what_is_written_is_read(tmp_path: Path) -> None:
    content = {"name": "größe\udcff", "values": [1, 2.5, None, True]}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json", "expected figures") == content
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", [object()])
    assert read_json(tmp_path / "a.json", "expected figures") == [1] and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe{}", "codec can't decode"),
        (b"[" * 100_000, "recursion"),
        (b'{"a": 1, "b": {"c": 2, "c": 3}}', "the name 'c' appears twice"),
        (b"9" * 5000, "integer string conversion"),
    ],
)
def test_what_is_no_json_is_reported_with_what_was_expected(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.json cannot be read \(.*{reason}.*\); expected figures\."):
        read_json(tmp_path / "a.json", "expected figures")


def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, reason in {"pipe": "not a regular file", "loop": "symbolic links", "gone": "No such file"}.items():
        with pytest.raises(UserError, match=rf"{name} cannot be read \(.*{reason}"):
            read_json(tmp_path / name, "expected figures")
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path, "expected figures")
