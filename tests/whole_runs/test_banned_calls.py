"""No file of this project calls what would run a file's content: held over the syntax of every one of them."""

import ast
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT

FOLDERS = ("utils", "models", "relabel", "benchmarks", "tests")
FILES = [ROOT / "main.py", *sorted(path for name in FOLDERS for path in (ROOT / name).rglob("*.py"))]

MODULES = {"marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle", "builtins", "_pickle", "lxml"}
MODULES |= {"multiprocessing.reduction", "xml.dom", "xml.sax", "xml.etree.cElementTree", "runpy"}
MODULES |= {"yaml.loader", "yaml.constructor", "torch.package"}
NAMES = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "shutil.unpack_archive"}
NAMES |= {"subprocess.getoutput", "subprocess.getstatusoutput", "torch.hub.load", "torch.jit.load"}
NAMES |= {"torch.serialization.load", "yaml.add_constructor", "pandas.read_pickle"}
NAMES |= {
    f"yaml.{name}" for name in ("load", "load_all", "full_load", "unsafe_load", "full_load_all", "unsafe_load_all")
}
NAMES |= {f"yaml.{name}Loader" for name in ("", "C", "Full", "CFull", "Unsafe", "CUnsafe")}
NAMES |= {f"xml.etree.ElementTree.{name}" for name in ("parse", "iterparse", "fromstring", "XML", "XMLParser")}
ALL = MODULES | NAMES | {"pickle.load", "torch.load"}
METHODS = {"extractall", "add_safe_globals"}
# What a keyword must be, literally, wherever it is given.
KEYWORDS = {"weights_only": True, "allow_pickle": False, "shell": False, "trust_remote_code": False}

# Rebuilding a NumPy scalar from its bytes runs nothing; checkpoints of 2021 hold one.
SAFE_GLOBALS = "utils/checkpoint.py"
# Tests make hostile files, and arrays of objects are one of them.
TRAPS = "tests/traps.py"


def banned(source: str, place: str) -> list[str]:
    """What in a file's source is banned, as "line: what"."""
    tree = ast.parse(source)
    origins = dict(_imports(tree))
    found = []
    for node in ast.walk(tree):
        for what in _of_node(node, origins, place):
            found.append(f"{place}:{getattr(node, 'lineno', 0)}: {what}")
    return found


def _imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Local name -> dotted name of what it was imported from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (
                    alias.asname or alias.name.partition(".")[0],
                    alias.name if alias.asname else alias.name.partition(".")[0],
                )
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _dotted(node: ast.AST, origins: dict[str, str]) -> str:
    """The full name that a name or attribute stands for; '' for anything else."""
    if isinstance(node, ast.Name):
        return origins.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (owner := _dotted(node.value, origins)):
        return f"{owner}.{node.attr}"
    return ""


def _of_node(node: ast.AST, origins: dict[str, str], place: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if _is_in(alias.name, MODULES))
    if isinstance(node, ast.ImportFrom):
        for name in (f"{node.module}.{alias.name}" for alias in node.names):
            everything = name.endswith(".*") and any(banned.startswith(name[:-1]) for banned in ALL)
            if everything or _is_in(name, MODULES | NAMES):
                yield name
    if isinstance(node, ast.Name | ast.Attribute):
        name = _dotted(node, origins)
        if name in NAMES or _is_in(name, MODULES) or (isinstance(node, ast.Attribute) and node.attr in METHODS):
            yield name
        if name == "torch.serialization.safe_globals" and place != SAFE_GLOBALS:
            yield name
        if name.startswith("pickle.") and not _is_allowed_pickle(name, place):
            yield name
    if isinstance(node, ast.Call):
        yield from _of_call(node, origins, place)
    for child in ast.iter_child_nodes(node):
        called = isinstance(node, ast.Call) and child is node.func
        if not called and isinstance(child, ast.Name | ast.Attribute) and _dotted(child, origins) == "torch.load":
            yield "torch.load under another name"


def _is_in(name: str, banned: set[str]) -> bool:
    """Whether it is one of them or lies below one."""
    return any(name == one or name.startswith(f"{one}.") for one in banned)


def _is_allowed_pickle(name: str, place: str) -> bool:
    """The error's name anywhere; in tests and benchmarks dumps, and loads as far as `_of_call` lets it pass."""
    own = place.startswith(("tests/", "benchmarks/"))
    return name == "pickle.UnpicklingError" or (own and name in ("pickle.dumps", "pickle.loads"))


def _of_call(node: ast.Call, origins: dict[str, str], place: str) -> Iterator[str]:
    name = _dotted(node.func, origins)
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    for key, needed in KEYWORDS.items():
        value = given.get(key)
        literal = isinstance(value, ast.Constant) and value.value is needed
        if value is not None and not literal and (place, name) != (TRAPS, "numpy.save"):
            yield f"{key} is not {needed}"
    if name == "numpy.load" and len(node.args) > 2:
        yield "allow_pickle by position"
    if name == "torch.load" and "weights_only" not in given:
        yield "torch.load without weights_only=True"
    if name == "pickle.loads" and not (
        len(node.args) == 1
        and isinstance(node.args[0], ast.Call)
        and _dotted(node.args[0].func, origins) == "pickle.dumps"
    ):
        yield "pickle.loads of something else than pickle.dumps has just made"


def test_no_file_calls_what_would_run_a_files_content() -> None:
    sources = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in FILES}
    assert len(sources) > 150
    assert [line for place, source in sources.items() for line in banned(source, place)] == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch\ntorch.load(path)",
        "from torch import load as fetch\nfetch(path)",
        "import torch\ntorch.load(path, **options)",
        "import torch\ntorch.load(path, weights_only=careless)",
        "import torch\nfetch = torch.load\nfetch(path)",
        "import numpy as np\nnp.load(path, None, True)",
        "from pickle import *",
        "from torch import *",
        "from yaml.loader import UnsafeLoader",
        "import yaml\nyaml.constructor.UnsafeConstructor",
        "import torch\ntorch.serialization.add_safe_globals([eval])",
        "from torch.serialization import safe_globals\nwith safe_globals([os.mkdir]): pass",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "from pickle import loads\nloads(data)",
        "import pickle as p\np.load(file)",
        "import pickle\npickle.Unpickler(file)",
        "import pickle\npickle.loads(packed)",
        "from pickle import Unpickler\nclass Own(Unpickler): pass",
        "import dill",
        "from marshal import loads",
        "import multiprocessing.reduction",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "import yaml\nclass Own(yaml.UnsafeLoader): pass",
        "from yaml import unsafe_load\nunsafe_load(text)",
        "eval(text)",
        "import builtins",
        "list(map(exec, texts))",
        "__import__(name)",
        "import os\nos.system(name)",
        "import subprocess\nsubprocess.run(text, shell=True)",
        "from xml.etree import ElementTree\nElementTree.parse(path)",
        "import xml.etree.ElementTree as ET\nET.fromstring(text)",
        "import tarfile\ntarfile.open(path).extractall(out)",
    ],
)
def test_the_check_finds_what_it_is_for(source: str) -> None:
    assert banned(source, "tests/anywhere.py")


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_of_the_list_is_found(module: str) -> None:
    owner, _, name = module.rpartition(".")
    assert banned(f"import {module}", "tests/anywhere.py")
    assert banned(f"from {module} import anything", "tests/anywhere.py")
    assert not owner or banned(f"from {owner} import {name}\n{name}.anything()", "tests/anywhere.py")


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_name_of_the_list_is_found(name: str) -> None:
    owner, _, last = name.rpartition(".")
    source = f"import {owner}\nx = {name}\nx(path)" if owner else f"x = {name}\nx(path)"
    assert banned(source, "tests/anywhere.py")
    assert not owner or banned(f"from {owner} import {last} as x\nx(path)", "tests/anywhere.py")
    assert not owner or banned(f"from {owner} import {last}", "tests/anywhere.py")


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_of_the_list_is_found(method: str) -> None:
    assert banned(f"anything.{method}(path)", "tests/anywhere.py")


@pytest.mark.parametrize("key", KEYWORDS)
def test_every_keyword_of_the_list_is_found(key: str) -> None:
    assert banned(f"anything({key}={not KEYWORDS[key]})", "tests/anywhere.py")


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(path, weights_only=True)\nmodel.eval()",
        "import re, yaml\nre.compile(text)\nyaml.dump(tree, Dumper=yaml.SafeDumper)",
        "import pickle\nlen(pickle.dumps(value))\npickle.loads(pickle.dumps(value))",
        "from pickle import UnpicklingError",
        "import numpy as np\nnp.load(path)\nnp.load(path, allow_pickle=False)",
    ],
)
def test_the_check_passes_what_is_harmless(source: str) -> None:
    assert banned(source, "tests/anywhere.py") == []


def test_what_tests_may_the_programs_may_not() -> None:
    assert banned("import pickle\npickle.loads(pickle.dumps(value))", "relabel/anywhere.py")
    assert banned("import pickle\npickle.dumps(value)", "utils/anywhere.py")
