"""The list of a data set's images: names, labels, keys of their label maps, and where their bytes lie.

Every form in which images are kept (relabel/data/sources.py) becomes such a list, with the same names and order, so
that training, label maps, keep lists and predictions do not depend on the form.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from utils.errors import UserError
from utils.look_alikes import look_alike
from utils.progress import counted

MOST_KINDS, LONGEST_NAME = 8, 60  # in messages
NUMBERED = "; its classes have numbers, not names: where others have names, 0 is the first of these"
HOW_TO_NAME = (
    "The shards number their classes. Where others have names for them, write these, by number, into _info.json beside "
    'the shards: {"class_names": ["NAME", ...]}'
)
SEARCHED = 50  # class names for which one that looks alike is looked for


class ImagePath(Protocol):
    """Where an image lies: a path, or a member of a tar file. As text it is what messages show."""

    def read_bytes(self) -> bytes:
        """Return the whole file. OSError if it cannot be read."""
        ...


class ImageFiles(Protocol):
    """Where the bytes of N images lie."""

    def path(self, index: int, name: str) -> ImagePath:
        """Return where image `index`, which is called `name`, lies."""
        ...

    def take(self, rows: np.ndarray) -> "ImageFiles":
        """Return those of some images, int64 [n] or bool [N]."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class FolderFiles:
    """Images as files in a folder, with their paths below it, bytes [N]."""

    root: Path
    below: np.ndarray

    def path(self, index: int, name: str) -> Path:
        """Return the path of an image; its name, CLASS/FILE, may leave out folders."""
        return self.root / os.fsdecode(self.below[index])

    def take(self, rows: np.ndarray) -> "FolderFiles":
        """Return the files of some images."""
        return replace(self, below=self.below[rows])


@dataclass(slots=True)
class Census:
    """What was found where the images of a split were looked for.

    Fields:
        source: where images and labels come from, such as "class folders in data/train".
        passed_over: kind of what is not used, a noun -> number, and the first of them.
        table: the file that has the labels, if any.
    """

    source: str
    passed_over: dict[str, tuple[int, str]] = field(default_factory=dict)
    table: Path | None = None

    def pass_over(self, kind: str, name: str, number: int = 1) -> None:
        """Count something that is not used."""
        count, first = self.passed_over.get(kind, (0, name))
        self.passed_over[kind] = (count + number, first)

    def others(self) -> str:
        """Return what is not used, with the first of each kind: images first, hidden files last."""
        found = sorted(self.passed_over.items(), key=lambda item: ("image" not in item[0], "hidden" in item[0]))
        kinds = [f"{counted(n, kind)} ({shortened(first)})" for kind, (n, first) in found]
        more = f" and {counted(len(kinds) - MOST_KINDS, 'other kind')}" if len(kinds) > MOST_KINDS else ""
        return ", ".join(kinds[:MOST_KINDS]) + more or "empty folders"

    def __str__(self) -> str:
        """Return the source, then what is not used."""
        return self.source + (f"; not used: {self.others()}" if self.passed_over else "")


def shortened(text: str) -> str:
    """Return a name for a message: its end, if it is long."""
    text = text.replace("\n", "\\n")
    return text if len(text) <= LONGEST_NAME else f"...{text[3 - LONGEST_NAME :]}"


@dataclass(slots=True, eq=False)
class Found:
    """Images as they were found, before they have classes.

    Fields:
        root: what was given: a folder, a tar file or a pattern.
        paths: of the N images inside it; the parts are separated by "/".
        files: where their bytes lie.
        census: where they come from, and what else was found.
    """

    root: Path
    paths: list[str]
    files: ImageFiles
    census: Census

    def located(self, row: int) -> ImagePath:
        """Return where an image lies, for messages."""
        return self.files.path(row, self.paths[row])


@dataclass(frozen=True, slots=True, eq=False)
class ImageList:
    """The images of a data set, as arrays: a million strings would be copied into each worker one by one.

    Fields:
        root: what was given: a folder, a tar file or a pattern.
        class_names: K texts; class folders are sorted as text.
        names: bytes [N]; "CLASS/FILE", sorted by class, then by file; folders in between are left out.
        labels: int32 [N]; the class of each image, an index into class_names.
        files: where the bytes lie.
        census: what was found, for the line that is printed.
        numbered: the class names are only numbers, those of WebDataset shards that do not name their classes.
        numbers: of the K classes in WebDataset shards, ascending; () elsewhere.

    Without labels names are "FILE", class_names is empty and labels are -1.
    """

    root: Path
    class_names: list[str]
    names: np.ndarray
    labels: np.ndarray
    files: ImageFiles
    census: Census
    numbered: bool = False
    numbers: Sequence[int] = ()

    @classmethod
    def of_folder(cls, root: Path, class_names: list[str], names: np.ndarray, labels: np.ndarray) -> "ImageList":
        """Build a list whose images lie under their names in a folder."""
        return cls(root, class_names, names, labels, FolderFiles(root, names), Census(str(root)))

    def __len__(self) -> int:
        """Return N, the number of images."""
        return len(self.names)

    def described(self, what: str = "") -> str:
        """Return a line: how many images there are of `what`, where they come from, and what is not used."""
        number = len(self.class_names)
        of_classes = f" of {number:,} class{'es' * (number != 1)}" if number else ""
        return f"{what}{': ' * bool(what)}{counted(len(self), 'image')}{of_classes} from {self.census}"

    def words(self) -> list[str]:
        """Return what stands for these images on a command line, after --images."""
        return [str(self.root), *(["--table", str(self.census.table)] if self.census.table else [])]

    def index_at(self, path: Path) -> int | None:
        """Return the index of the image at a path in a file system; None if there is none of these."""
        if not isinstance(self.files, FolderFiles):
            return None
        below = os.fsencode(os.path.relpath(path, self.files.root.resolve()))
        rows = np.flatnonzero(self.files.below == below)
        return int(rows[0]) if len(rows) else None

    def name(self, index: int) -> str:
        """Return CLASS/FILE of an image."""
        return os.fsdecode(self.names[index])

    def path(self, index: int) -> ImagePath:
        """Return where an image lies."""
        return self.files.path(index, self.name(index))

    def take(self, rows: np.ndarray) -> "ImageList":
        """Return some of the images, int64 [n] or bool [N], with the same classes."""
        return replace(self, names=self.names[rows], labels=self.labels[rows], files=self.files.take(rows))

    def keys(self) -> np.ndarray:
        """Return the keys of the label maps, bytes [N]: "CLASS/STEM"; the stem is the name up to the last dot.

        Raises:
            UserError: two images have the same key, so they would share a label map.
        """
        stems = (name.rpartition(b".")[0] for name in self.names)
        keys = np.fromiter(stems, self.names.dtype, len(self))
        keys = keys.astype(f"S{max(1, np.char.str_len(keys).max(initial=1))}")
        if (keys[1:] > keys[:-1]).all():  # as usual: spares the sorting
            return keys
        order = np.argsort(keys, kind="stable")  # takes a third of the time of np.unique
        twice = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
        if len(twice):
            first, second = order[twice[0]], order[twice[0] + 1]
            raise UserError(
                f"{self.path(first)} and {self.path(second)} differ only in the extension; expected one image per "
                f"class and stem, because {os.fsdecode(keys[first])} names the label map of both. Rename one of them."
            )
        return keys

    def with_classes_of(self, class_names: Sequence[str], owner: str, numbers: Sequence[int] = ()) -> "ImageList":
        """Return the same images with labels that refer to another list of class names, which may be longer.

        Args:
            class_names: K texts, as of the training folders or a checkpoint.
            owner: what has these classes, for the message.
            numbers: of these classes in shards, which number classes without names; () = 0, 1, ...

        Raises:
            UserError: class_names lack a class folder.
        """
        used = {self.class_names[label] for label in np.flatnonzero(np.bincount(self.labels))}
        unknown = sorted(used - {*class_names})
        if unknown and (self.numbered or (self.census.table and all(map(str.isdecimal, used)))):
            return self._joined_by_number(sorted(map(int, used)), class_names, owner, numbers)
        if unknown:
            found = f"{len(unknown)} of {len(used)} class folders that {owner} do not have"
            if len(unknown) == len(used):
                found = f"none of the {len(class_names)} classes that {owner} have ({class_names[0]}, ...), but others"
            pairs = [text for name in unknown[:SEARCHED] if (text := look_alike(name, class_names))]
            hint = f" {'; '.join(pairs[:3])}: rename one of them." if pairs else ""
            raise UserError(
                f"{self.root}: found {found}, the first: {unknown[0]}; expected those {len(class_names)} classes or "
                f"some of them.{hint}"
            )
        if [*class_names] == self.class_names:
            return self  # with labels that may be mapped into memory
        position = {name: i for i, name in enumerate(class_names)}
        new_labels = np.array([position.get(name, -1) for name in self.class_names], dtype=np.int32)
        return replace(self, class_names=list(class_names), labels=new_labels[self.labels])

    def _joined_by_number(
        self, used: Sequence[int], class_names: Sequence[str], owner: str, numbers: Sequence[int]
    ) -> "ImageList":
        """Return the same images, whose classes have numbers only, with the names of these numbers."""
        position = {number: i for i, number in enumerate(numbers or range(len(class_names)))}
        absent = [number for number in used if number not in position]
        if absent:
            remedy = f"Write names into {self.census.table}." if self.census.table else HOW_TO_NAME
            if numbers:
                remedy = "Give training shards that have all classes of the validation shards."
            raise UserError(
                f"{self.root}: found {counted(len(absent), 'class number')} that {owner} do not have, the first: "
                f"{absent[0]}; expected numbers of these {len(class_names)} classes ({min(position)} to "
                f"{max(position)}). {remedy}"
            )
        labels = np.array([position.get(int(name), -1) for name in self.class_names], np.int32)[self.labels]
        files = np.array([name.partition(b"/")[2] for name in self.names.tolist()])
        names = np.char.add(as_bytes([f"{name}/" for name in class_names])[labels], files)
        return replace(self, class_names=list(class_names), names=names, labels=labels, numbered=False, numbers=())


def image_list(found: Found, class_names: list[str], labels: np.ndarray, kept: np.ndarray | None = None) -> ImageList:
    """Build the list of images: sorted by class, then by file name.

    Args:
        found: N images, in any order.
        class_names: K texts; [] without classes.
        labels: int32 [N]; index into class_names, -1 without classes.
        kept: bool [N]; the images to list; None: all.

    Raises:
        UserError: two images would have the same name, or a class cannot be the name of a folder.
    """
    if wrong := next((name for name in class_names if "/" in name or "\0" in name or name in ("", ".", "..")), None):
        raise UserError(
            f"{found.root}: found the class {wrong!r}; expected a name that a folder can have, without '/', because "
            "label maps are kept as CLASS/IMAGE. Rename this class."
        )
    stems = as_bytes([path.rpartition("/")[2] for path in found.paths])
    rows = np.arange(len(stems)) if kept is None else np.flatnonzero(kept)
    rows = rows[np.lexsort((stems[rows], labels[rows]))]
    names, labels = stems[rows], labels[rows]
    if class_names:
        names = np.char.add(as_bytes([f"{name}/" for name in class_names])[labels], names)
    same = np.flatnonzero(names[1:] == names[:-1])
    if len(same):
        first, second = rows[same[0]], rows[same[0] + 1]
        level = (
            "" if len(class_names) > 1 or found.paths[first].count("/") < 2 else found.paths[first].partition("/")[0]
        )
        remedy = f" If the folders in {level}/ are the classes, give {found.root / level}." if level else ""
        raise UserError(
            f"{found.located(first)} and {found.located(second)} are both called {os.fsdecode(names[same[0]])}; "
            "expected one image per class and file name, whatever the folders in between, because label maps are "
            f"found by it. Rename or remove one.{remedy}"
        )
    return ImageList(found.root, class_names, names, labels, found.files.take(rows), found.census)


def as_bytes(names: Sequence[str]) -> np.ndarray:
    """Return names as bytes [N], as they are in the file system."""
    return np.array([os.fsencode(name) for name in names], dtype=np.bytes_)
