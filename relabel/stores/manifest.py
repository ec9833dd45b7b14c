"""What a set of label maps says about itself: manifest.json, beside the maps."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from utils.errors import UserError
from utils.files import read_json, write_json

MANIFEST = "manifest.json"
VERSION = 1
AXES = "[k, row, column]; row 0 at the image's top"
COVERS = "the whole image, squashed; EXIF rotation ignored"

Form = Literal["packed", "pt"]
LARGEST_MAP = 2**28
_Count = Annotated[int, Field(ge=1)]
_HashedFile = Annotated[str, Field(pattern=r"^((maps|keys|crc32)\.npy|manifest\.json)$")]


class Manifest(BaseModel):
    """Which maps these are; the fields of manifest.json.

    Fields:
        version: of the format.
        form: packed (see relabel/stores/packed.py) or pt (relabel/stores/pt_folder.py).
        maps: how many there are; of the form pt, of how many images.
        k, h, w: shape of each map.
        axes, covers: how to read a map, for people.
        class_names: the K classes that ids 0..K-1 stand for.
        made_by: teacher, input size, and all else that a map depends on.
        skipped: key -> reason, of images that have no map because they could not be read.
        sha256: of each file of a packed store. The file also holds that of the manifest itself, without that entry.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: int = VERSION
    form: Form
    maps: Annotated[int, Field(ge=0)]
    k: _Count
    h: _Count
    w: _Count
    axes: str = AXES
    covers: str = COVERS
    class_names: list[str] = Field(min_length=1)
    made_by: dict[str, Any]
    skipped: dict[str, str] = {}
    sha256: dict[_HashedFile, str] = {}

    @model_validator(mode="after")
    def _makes_sense(self) -> "Manifest":
        """Two classes of one name could not be told apart, and a record must have a size."""
        if len(set(self.class_names)) < len(self.class_names):
            raise ValueError("a class is named twice")
        if self.k * self.h * self.w > LARGEST_MAP:
            raise ValueError(f"a map has more than {LARGEST_MAP:,} scores")
        for key in self.skipped:
            os.fsencode(key)  # ValueError where no file can have the name
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """(k, h, w)."""
        return self.k, self.h, self.w

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    def write(self, path: Path) -> None:
        """Put it in place by a rename. UserError where it cannot be written."""
        content = self.model_dump()
        content["sha256"][MANIFEST] = _sha256(content)
        write_json(path, content)

    def refuse_unless_equal(self, wanted: "Manifest", folder: Path) -> None:
        """Refuse to go on with maps that were made otherwise; which images, and the hashes, apart.

        Raises:
            UserError: naming the differences.
        """
        found, expected = (dict(_leaves(m.model_dump(exclude={"sha256", "skipped", "maps"}))) for m in (self, wanted))
        names = [name for name in {**found, **expected} if found.get(name) != expected.get(name)]
        if names:
            listed = "".join(f"\n  {n}: {_short(found.get(n))}, not {_short(expected.get(n))}" for n in names)
            raise UserError(
                f"{folder} holds label maps made otherwise than this command would:{listed}\n"
                "Give the settings they were made with, or another folder for the new maps"
            )


def read_manifest(folder: Path, name: str = MANIFEST) -> Manifest | None:
    """The manifest of a folder of label maps; None where it has none.

    Raises:
        UserError: it cannot be read, is no manifest, is of another version of the format, or not as it was written.
    """
    path = folder / name
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        pass  # reading it tells the reason
    content = read_json(path, _EXPECTED)
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        raise UserError(f"{path}: found version {version!r} of the format; expected {VERSION}. {_ANOTHER_VERSION}")
    try:
        hashes = Manifest.model_validate(content).sha256
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise UserError(f"{path}: {where}: {first['msg']}; {_EXPECTED}.") from None
    stated = content["sha256"].pop(MANIFEST, None) if hashes else None
    if stated is not None and stated != _sha256(content):
        raise UserError(f"{path}: what it says is not what its sha256 belongs to: it was changed; {_EXPECTED}.")
    return Manifest.model_validate(content)


def _sha256(content: dict[str, Any]) -> str:
    """Of a manifest's content, however it is laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


_EXPECTED = (
    "expected the manifest of label maps that `python -m relabel annotate` or `pack` writes. "
    "Fetch it again, or make these maps again"
)
_ANOTHER_VERSION = "It was written by another version of this program, or is no manifest of label maps."


def _leaves(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield above + name, value


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
