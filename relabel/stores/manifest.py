"""The manifest of a set of label maps, manifest.json beside the maps: their shape, classes and origin."""

import hashlib
import json
import os
from pathlib import Path
from reprlib import repr as shorten
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from utils.config.dotted_keys import flatten
from utils.errors import UserError
from utils.files import read_json, remove_temporaries, write_json

MANIFEST = "manifest.json"
AXES = "[k, row, column]; row 0 at the image's top"
COVERS = "the whole image, squashed; EXIF rotation ignored"

Form = Literal["packed", "pt"]
LARGEST_MAP = 2**28
# Settings of which earlier versions had one, without saying so.
_UNSAID = {"made_by.decoder": "pillow"}
_EXPECTED = (
    "expected the manifest of label maps that `python -m relabel annotate` or `pack` writes. "
    "Copy or download it again, or delete the folder and make its label maps again"
)


class Manifest(BaseModel):
    """The content of manifest.json.

    Fields:
        version: version of the format.
        form: packed (see relabel/stores/packed.py) or pt (relabel/stores/pt_folder.py).
        maps: number of label maps; for pt, of images.
        k, h, w: shape of each map.
        axes, covers: how to read a map, for human readers.
        class_names: the names of classes 0..K-1.
        made_by: teacher, input size and whatever else the maps depend on.
        skipped: key -> reason, for images without a map because they could not be read.
        sha256: of the files of a packed store; in manifest.json also of the manifest itself, without that entry.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = 1
    form: Form
    maps: NonNegativeInt
    k: PositiveInt
    h: PositiveInt
    w: PositiveInt
    axes: str = AXES
    covers: str = COVERS
    class_names: list[str] = Field(min_length=1)
    made_by: dict[str, Any]
    skipped: dict[str, str] = {}
    sha256: dict[str, str] = {}

    @model_validator(mode="after")
    def _check(self) -> "Manifest":
        if len(set(self.class_names)) < len(self.class_names):
            raise ValueError("two classes have the same name")
        if self.k * self.h * self.w > LARGEST_MAP:
            raise ValueError(f"a map has more than {LARGEST_MAP:,} scores")
        for key in self.skipped:
            os.fsencode(key)  # ValueError if no file can have this name
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (k, h, w)."""
        return self.k, self.h, self.w

    @property
    def num_classes(self) -> int:
        """Return K, the number of classes."""
        return len(self.class_names)

    @property
    def summed_classes(self) -> dict[str, int]:
        """Return class -> number of the teacher's classes whose probabilities add up to it, if more than one."""
        teacher = self.made_by.get("teacher")
        if not isinstance(teacher, dict) or "merged_by" in teacher:
            return {}
        return {name: len(ids) for name, ids in teacher.get("merged", {}).items()}

    def digest(self) -> str:
        """Return the sha256 of the content without its own entry; independent of the layout of the JSON."""
        content = self.model_dump(exclude={"sha256": {MANIFEST}})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def write(self, path: Path) -> None:
        """Write the file atomically. UserError if it cannot be written."""
        content = self.model_dump()
        content["sha256"][MANIFEST] = self.digest()
        write_json(path, content)

    def begin(self, folder: Path, name: str = MANIFEST) -> None:
        """Start label maps in an empty folder with this manifest, or check that those in it have the same settings.

        Their number, hashes and skipped images may differ. Temporary files of killed processes are removed.

        Args:
            folder: of the label maps; must exist.
            name: file name of the manifest while the maps are being made.

        Raises:
            UserError: the folder contains label maps made with other settings (the message lists them), or other files.
        """
        begun = read_manifest(folder) or read_manifest(folder, name)
        if begun is not None:
            begun._check_same_settings(self, folder)
        elif others := sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")):
            raise UserError(
                f"{folder} is not empty: it contains {others[0]}, but no {MANIFEST} of label maps; expected a new or "
                "empty folder, or label maps made with the same settings. Choose another folder"
            )
        else:
            self.write(folder / name)
        remove_temporaries(folder)

    def _check_same_settings(self, wanted: "Manifest", folder: Path) -> None:
        found, expected = (
            _UNSAID | flatten(m.model_dump(exclude={"sha256", "skipped", "maps"})) for m in (self, wanted)
        )
        names = [name for name in {**found, **expected} if found.get(name) != expected.get(name)]
        if names:
            differences = "".join(f"\n  {n}: {shorten(found.get(n))}, not {shorten(expected.get(n))}" for n in names)
            raise UserError(
                f"the label maps in {folder} were made with settings other than those of this command:{differences}\n"
                "Repeat the settings that they were made with, or choose another folder for the new maps"
            )


def read_manifest(folder: Path, name: str = MANIFEST) -> Manifest | None:
    """Return the manifest in a folder of label maps; None if there is none.

    Raises:
        UserError: it cannot be read, is not a manifest of this format version, or was changed since it was written.
    """
    path = folder / name
    if not path.exists():
        return None
    try:
        manifest = Manifest.model_validate(read_json(path, _EXPECTED))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "content"
        if field == "version":
            raise UserError(
                f"{path}: found version {first['input']} of the format; expected 1. Another version of this program "
                "wrote these label maps: use that version, or make or pack them again in another folder."
            ) from None
        reason = f"it has no {field}" if first["type"] == "missing" else f"{field}: {first['msg']}"
        raise UserError(f"{path} is not a manifest of label maps ({reason}); {_EXPECTED}.") from None
    if manifest.sha256.get(MANIFEST) not in (None, manifest.digest()):
        raise UserError(f"{path}: its content does not match its own sha256, so it has been changed; {_EXPECTED}.")
    return manifest
