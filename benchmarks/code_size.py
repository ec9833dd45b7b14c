"""Count the lines of code of each folder, without docstrings, comments and blank lines.

python -m benchmarks.code_size [--files]
"""

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(source: str) -> int:
    """Count the lines of a Python source that hold a token other than a docstring or a comment."""
    docstrings = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and ast.get_docstring(node, clean=False) is not None
        for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    code = {
        line
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in NO_CODE
        for line in range(token.start[0], token.end[0] + 1)
    }
    return len(code - docstrings)


def main(argv: list[str]) -> None:
    """Print a line for each room, and for each file if asked."""
    rooms: Counter[str] = Counter()
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT)
        if name.parts[0] in ("main.py", "utils", "models", "relabel", "benchmarks", "tests"):
            lines = code_lines(path.read_text(encoding="utf-8"))
            rooms["/".join(name.parts[:-1]) or "main.py"] += lines
            if argv:
                print(f"{lines:6,}  {name}")
    for room, lines in rooms.items():
        print(f"{lines:6,}  {room}")
    source = sum(lines for room, lines in rooms.items() if not room.startswith(("tests", "benchmarks")))
    tests = sum(lines for room, lines in rooms.items() if room.startswith("tests"))
    print(f"{source:6,}  source without benchmarks\n{tests:6,}  tests")


if __name__ == "__main__":
    main(sys.argv[1:])
