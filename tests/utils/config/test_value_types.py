"""What a type accepts, and how it is described."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from utils.config.value_types import (
    Count,
    ExistingFile,
    ExistingFolder,
    Joined,
    NewFile,
    Positive,
    Size,
    ValueType,
    number,
)

Letter = Annotated[Literal["a", "b"], Field(description="c is refused")]


@pytest.mark.parametrize(
    ("annotation", "word", "expected"),
    [
        (Positive | None, "N", "a whole number >= 1, or none"),
        (Annotated[float, Field(gt=0, le=0.5)], "X", "a number > 0 and <= 0.5"),
        (Letter | None, "a|b", "one of a, b (c is refused), or none"),
        (Size, "ROWSxCOLUMNS", "rows x columns in pixels, such as 56x72"),
        (Annotated[str, Field(title="NAME", description="a name")], "NAME", "a name"),
    ],
)
def test_a_type_in_words(annotation: Any, word: str, expected: str) -> None:
    kind = ValueType.of(annotation)
    assert (kind.word, kind.expected) == (word, expected)


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (float, "2", 2.0),
        (float | None, "NULL", None),
        (str, "none", "none"),
        (Annotated[tuple[float, float], Joined(",")], "1,2e-1", (1.0, 0.2)),
    ],
)
def test_a_text_that_fits(annotation: Any, text: str, value: Any) -> None:
    kind = ValueType.of(annotation)
    found = kind.check(kind.read(text))
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("annotation", "text"),
    [(Count, "-1"), (float, "none"), (float, "1e400"), (bool, "1"), (Path, ""), (Size, "7"), (Letter, "c")],
)
def test_a_text_that_does_not_fit(annotation: Any, text: str) -> None:
    kind = ValueType.of(annotation)
    with pytest.raises(ValidationError):
        kind.check(kind.read(text))
    assert kind.refusal(text).startswith(f"expected {kind.expected}")


@given(st.text("0123456789+-.eE_x inf٣", max_size=8) | st.floats().map(repr) | st.integers().map(str))
@example("9" * 18)
@example("9" * 19)
@example("1e400")
def test_a_number_is_what_python_takes_for_one_but_for_its_extras(text: str) -> None:
    """Extras: underscores, spaces around, inf and nan, and digits of other scripts."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    is_number = math.isfinite(value) and set(text) <= set("0123456789+-.eE")
    found = number(text)
    if is_number:
        assert not isinstance(found, str) and found == pytest.approx(value)
        assert isinstance(found, int) == (text.lstrip("+-").isdigit() and len(text.lstrip("+-")) <= 18)
    else:
        assert found == text


@pytest.mark.parametrize(
    ("annotation", "fitting"),
    [(ExistingFile, {"file"}), (ExistingFolder, {"folder"}), (NewFile, {"file", "new", "folder/new"})],
)
def test_paths_are_looked_at(tmp_path: Path, annotation: Any, fitting: set[str]) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    kind = ValueType.of(annotation)
    for name in ("file", "folder", "new", "folder/new", "nowhere/new", "file/new", "n" * 5000):
        if name in fitting:
            assert kind.check(tmp_path / name) == tmp_path / name
        else:
            with pytest.raises(ValidationError):
                kind.check(tmp_path / name)
