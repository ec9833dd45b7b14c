"""JSON files: written whole or not at all, read with one clear error for whatever they hold."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.folders import write_text


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all, and on the disk when this returns. UserError where it cannot be written."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path, expected: str) -> Any:
    """The content of a JSON file.

    Args:
        path: of the file.
        expected: what it should be and what to do, for the message.

    Raises:
        UserError: there is none, it cannot be read, or an object in it has a name twice, of which one would be lost.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for without end
            raise OSError("it is no regular file")
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); {expected}.") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of two equal names the first would be lost without a word."""
    content = dict(pairs)
    if len(content) < len(pairs):
        name = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise ValueError(f"the name {name!r} stands there twice")
    return content
