"""Command lines and YAML files that must do nothing: a table, and a program that tries all of them in one process.

`python -m tests.wrong_commands` (in a working folder of its own) prints a JSON list: for each line the exit status, the
output, the heavy libraries that it imported, and whether the folder changed.
"""

import contextlib
import importlib
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

HEAVY = ("torch", "numpy", "torchvision", "relabel.training.trainer", "relabel.annotation.annotator")
FOLDERS = {"data.data_path": "DATA", "data.relabel.path": "LABELS"}
EVALUATION = {"util.test_only": "True", "util.test_weight_file": "W.pth"}


class Case(NamedTuple):
    """A command line, and the error that it must give.

    Fields:
        argv: the words after the program's name.
        match: regular expression of the message.
        problems: how many it lists.
        file: content of my.yaml; None: a good file.
        environment: additional variables.
        program: the module whose main() it is for.
    """

    argv: Sequence[str]
    match: str
    problems: int = 1
    file: str | bytes | None = None
    environment: Mapping[str, str] = {}
    program: str = "main"


def words(flags: Mapping[str, str]) -> list[str]:
    """Write flags as words, each value attached to its key."""
    return [f"--{key}={text}" for key, text in flags.items()]


# A flag's key and text, and the message. Flags for folders that exist are added.
FLAGS = [
    ("optim.epochs", "ten", r"optim.epochs = 'ten' \(command line\): expected a whole number >= 1; the default is 100"),
    ("optim.lr.init", "nan", "expected a number"),
    ("optim.momentum", "0", "--optim.nesterov False"),
    ("optim.optimizer", "adam", "expected one of sgd, adamp, adamw; did you mean adamw"),
    ("optim.start_epoch", "3", r"optim.start_epoch = 3 \(command line\): expected 0.*repeat its command"),
    ("model.drop_path_rate", "1", "model.drop_path_rate = 1 .*expected a number >= 0 and < 1"),
    ("optim.accumulation", "3", "optim.batch_size = 512 .*expected a multiple of optim.accumulation = 3"),
    ("data.cutmix.prob", "1", r"data.cutmix.beta = 0.0 \(default\): expected a number > 0.*--data.cutmix.beta 1.0"),
    ("data.relabel.use", "yes", "expected true or false; the default is True"),
    ("data.data_path", "None", "expected text .*'' for none"),
    ("compute.opt_level", "O3", "O3, pure float16, is refused"),
    ("compute.distributed.url", "127.0.0.1:6946", "expected text .*tcp://HOST:PORT"),
    ("util.test_only", "true", "util.test_weight_file = '' .*--util.test_weight_file FILE"),
    # keys that do not exist
    ("optim.epoch", "3", "--optim.epoch .*no such key; did you mean --optim.epochs?"),
    ("batch_size", "3", "did you mean --optim.batch_size"),
    ("optim.lr", "0.1", "--optim.lr .*is a section, not a key; did you mean --optim.lr.init or"),
    # files and folders
    ("data.data_path", "", "data.data_path = '' .*expected the folder with train/.*--data.data_path FOLDER"),
    ("data.data_path", "NOWHERE", "data.data_path = 'NOWHERE' .*no such folder"),
    ("data.relabel.path", "", "expected label maps.*relabel annotate`.*--data.relabel.use False"),
    (
        "data.relabel.path",
        "NOWHERE",
        "no such folder; expected label maps.*relabel annotate`.*--data.relabel.use",
    ),
    (
        "data.keep_list",
        "no.txt",
        "data.keep_list = .no.txt. .*no such file; expected .*--data.keep_list, or leave it out",
    ),
    ("model.weights", "no.pth", "model.weights = 'no.pth' .*no such file"),
    ("util.run_dir", "W.pth", "util.run_dir = 'W.pth' .*is a file"),
    ("util.run_dir", "DATA/val/run", "util.run_dir = 'DATA/val/run' .*lies among the images or label maps"),
    ("util.run_dir", "a" * 300, "too long, or below a folder that may not be entered"),
    ("util.run_dir", "~/runs/x", "only a shell replaces ~, and not after =; write the whole path"),
]

# Content of my.yaml, and the message.
FILES: list[tuple[str | bytes, str]] = [
    ("optm:\n  epochs: 3\n", r"optm \(my.yaml, line 1\): no such key; did you mean optim"),
    ("optim:\n  epoch: 3\n", r"optim.epoch \(my.yaml, line 2\): no such key; did you mean optim.epochs\?"),
    ("optim.epochs: 3\n", r"optim.epochs \(my.yaml, line 1\): keys are nested in a file"),
    ("optim:\n  batch_size: 64\n  batch-size: 64\n", "optim.batch_size .*line 3.*given twice, first on line 2"),
    ("optim: 3\n", "is a section; its keys go below it, indented: optim.optimizer, "),
    ("optim:\n  epochs: {a: 1}\n", "expected one value, found a section"),
    ("optim:\n  epochs:\n", "optim.epochs = null .*line 2.*expected a whole number"),
    ("optim:\n  epochs: 1:30\n", "optim.epochs = '1:30' .*expected a whole number"),
    ("data:\n  relabel: {use: yes}\n", "data.relabel.use = 'yes' .*expected true or false"),
    ("util:\n  run_dir: 2024\n", "util.run_dir = 2024 .*expected text.*put it in quotes"),
    ('util: {run_dir: "\\UFFFFFFFF"}\n', "is not YAML"),
    ("util:\n  run_dir: !!python/object/apply:os.system ['touch HACKED']\n", "expected one value"),
    ("util:\n  run_dir: !!python/name:os.system ''\n", "the tag tag:yaml.org,2002:python/name:os.system"),
    ("optim: {epochs: *nowhere}\n", "is not YAML: line 1: found undefined alias"),
    ("- optim\n", r"config file \(my.yaml\): expected sections such as `model:`, each"),
    ("optim: {epochs: 3\n", r"config file \(my.yaml\): is not YAML: line 2: expected ',' or '}'"),
    ("a: 1\n---\nb: 2\n", "is not YAML: line 2: but found another document"),
    ("? [a]\n: 1\n", r"a key \(my.yaml, line 1\): must be plain text, found a list; write the name of a key"),
    ("#" * 1_000_001, "larger than a megabyte"),
    (b"\xef\xbb\xbfoptim:\n  epoch: 3\n", r"optim.epoch \(my.yaml, line 2\): no such key"),  # with a byte order mark
    ("optim:\n  epoch: 3\n".encode("utf-16"), r"optim.epoch \(my.yaml, line 2\): no such key"),
    (b"util: {run_dir: r\xe9sum\xe9}\n", "is not YAML"),  # Latin-1
]

# Words after the flags for folders, and the message.
LINES = [
    (["util.test_only=True"], r"util.test_only=True \(command line\): .*write --util.test_only=True"),
    (["-optim.epochs", "3"], "-optim.epochs .*two hyphens; write --optim.epochs"),
    (["\u2013\u2013optim.epochs=30"], "optim.epochs=30 .*belongs to no flag|two hyphens"),  # dashes of a word processor
    (["my.yaml"], "a config file goes after its flag; write --config-file-path my.yaml"),
    (["--util.run_dir", "two", "words"], "words .*belongs to no flag; .*in quotes"),
    (["--optim.epochs", "30", "--", "--optim.batch_size", "64"], r"-- \(command line\): what follows would be ignored"),
    (["--util.test_only"], "--util.test_only .*has no value; write --util.test_only VALUE"),
    (["--config-file-path", ""], "--config-file-path .*is empty"),
    (["--optim.epochs", "3", "--optim.epochs", "4"], "--optim.epochs .*given twice: '3' and '4'; keep one"),
    (["--=3"], "--=3 .*has no name; write --NAME VALUE"),
    (["--optim.epochs 30"], "--optim.epochs 30 .*no such key; did you mean --optim.epochs"),
    (["--config-file-path", "no.yaml"], "config file .*no.yaml.*cannot be read"),
    (["--config-file-path", "DATA"], r"config file \(DATA\): cannot be read: Is a directory.*give an existing file"),
    (["--trace", "1"], "--trace .*no such key"),  # fire's own flags and names
    (["--util.run_dir", "\udcff", "--optim.epoch", "3"], "--optim.epoch .*no such key"),  # a byte that is no UTF-8
]

# Misspellings of --config_file_path; as the file might name the folders, nothing else is reported.
MISSPELT = ("config", "CONFIG_FILE_PATH")

MAIN_HELP: list[list[str]] = [
    ["--help"],
    ["--config-file-path", "my.yaml", "--help"],
    ["--optim.epochs", "--help"],
]
TOOLS_HELP: list[list[str]] = [
    [],
    ["--help"],
    ["annotate", "nowhere", "--top_k", "-h"],
    ["doctor", "--help"],
]

# What an evaluation still needs, after EVALUATION.
EVALUATIONS = [
    ({"eval.real": "no.json"}, "eval.real = 'no.json' .*no such file; expected real.json of ReaL; correct --eval.real"),
    ({"eval.imagenet_v2": "W.pth"}, "eval.imagenet_v2 = 'W.pth' .*no such folder; expected a variant of ImageNetV2"),
    ({"eval.imagenet_c": "NO"}, "eval.imagenet_c = 'NO' .*no such folder; .*CORRUPTION/SEVERITY/WNID/IMAGE"),
    ({"data.data_path": ""}, "data.data_path = '' .*expected the folder with train/"),
    ({"data.data_path": "", "eval.imagenet_a": "DATA", "eval.labels": "W.pth"}, "data.data_path = '' .*expected"),
    ({"util.test_weight_file": "no.pth"}, "= 'no.pth' .*no such file.*give --util.test_weight_file FILE"),
]

# Several mistakes, in whole command lines: how many, and the messages in their order.
TOGETHER: list[tuple[list[str], int, str]] = [
    ([], 2, "data.data_path = ''.*\n.*data.relabel.path = ''"),
    (["stray", "--optim.epochs", "ten"], 4, "stray .*\n.*optim.epochs = 'ten'"),
    (["--util.run_dir", "--", "x"], 5, "--util.run_dir .*has no value.*\n.*-- .*ignored.*\n.*x .*belongs to no flag"),
    (["--config-file-path", "no.yaml", "--optim.epochs", "x", "y"], 3, "y .*\n.*no.yaml.*\n.*optim.epochs = 'x'"),
]

# Variables that torchrun sets, and the message.
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
SECOND_PROCESS = TORCHRUN | {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
ENVIRONMENTS = [
    ({"LOCAL_RANK": "1"}, r"LOCAL_RANK = '1' \(environment\): means several processes, but RANK, WORLD_SIZE"),
    ({"RANK": "1", "WORLD_SIZE": "2"}, "RANK = '1' .*LOCAL_RANK, LOCAL_WORLD_SIZE, .*are not set; .*torchrun"),
    (SECOND_PROCESS | {"RANK": "-1"}, "RANK = '-1' .*expected a whole number"),
    (SECOND_PROCESS | {"RANK": "2"}, "RANK = '2' .*expected less than WORLD_SIZE = 2"),
    (SECOND_PROCESS | {"MASTER_PORT": "tcp"}, "MASTER_PORT = 'tcp' .*expected a whole number"),
    (SECOND_PROCESS | {"MASTER_PORT": "99999"}, "MASTER_PORT = '99999' .*expected at most 65535"),
    (SECOND_PROCESS | {"LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE = '3' .*expected at most WORLD_SIZE = 2"),
]

# Words of `python -m relabel`, how many mistakes, the message.
TOOLS: list[tuple[list[str], int, str]] = [
    (["anotate", "a", "b"], 1, "did you mean annotate"),
    (["trian"], 1, "did you mean train"),
    (["evaluate", *words(FOLDERS | {"util.test_weight_file": "W.pth"}), "stray"], 1, "stray .*belongs to no flag"),
    (["--images", "DATA", "annotate"], 1, "the command comes first; write python -m relabel annotate"),
    (["digits", "--out", "new", "--train", "9", "--vall", "10"], 2, "--train = '9'.*\n.*--vall "),
    (["annotate", "nowhere"], 2, "IMAGES = 'nowhere'.*\n.*LABELS .*is missing"),
    (["annotate", "DATA", "new", "--mean=0.5"], 1, "--mean = '0.5' .*three numbers such as"),
    (["annotate", "DATA", "new", "--unlabeled", "true"], 1, r"did you mean --unlabelled\?"),
    (["show", "a", "--labels", "."], 2, "--images IMAGES .*is missing.*\n.*--out FILE .*is missing"),
    (
        ["show", "--labels", ".", "--images", ".", "--out", "a.jpg"],
        1,
        "--out = 'a.jpg' .*expected a .png or .html file",
    ),
    (["check", "nowhere", "--teacher_accuracy", "101"], 2, "LABELS = 'nowhere'.*\n.*a number > 1 and <= 100"),
    (["export-model", "w.pth", "out"], 1, "--form timm.backbone.onnx .*is missing"),
    (["digits-annotator", "--out", "no/a.pth"], 1, "--out = 'no/a.pth' .*expected a file in a folder that exists"),
]

WRONG = [
    *(Case(words(FOLDERS | {key: text}), match) for key, text, match in FLAGS),
    *(Case([*words(FOLDERS), "--config-file-path", "my.yaml"], match, file=text) for text, match in FILES),
    *(Case([*words(FOLDERS), *argv], match) for argv, match in LINES),
    *(Case([f"--{name}", "my.yaml"], "no such key; did you mean --config_file_path?") for name in MISSPELT),
    *(Case(words(FOLDERS | EVALUATION | flags), match) for flags, match in EVALUATIONS),
    *(Case(argv, match, problems) for argv, problems, match in TOGETHER),
    *(Case(words(FOLDERS), match, environment=environment) for environment, match in ENVIRONMENTS),
    *(Case(argv, match, problems, program="relabel.__main__") for argv, problems, match in TOOLS),
    Case(
        ["annotate", "DATA", "new"],
        "RANK = '-1'",
        environment=SECOND_PROCESS | {"RANK": "-1"},
        program="relabel.__main__",
    ),
]
"""Exit status 2."""

HELP = [
    *(Case(argv, "^usage: python main.py") for argv in MAIN_HELP),
    *(Case(argv, "^usage: python -m relabel ", program="relabel.__main__") for argv in TOOLS_HELP),
    Case(["evaluate", "--help"], "^usage: python main.py (.|\n)*`relabel evaluate` adds", program="relabel.__main__"),
]
"""Requests for help, some of them in odd places: exit status 0."""


def put_folders() -> None:
    """Make what the lines name, in the working folder."""
    for folder in ("DATA/train", "DATA/val", "LABELS", "ONLY_VAL/val", "ONLY_TRAIN/train"):
        Path(folder).mkdir(parents=True)
    Path("W.pth").touch()


def snapshot() -> dict[str, tuple[int, int]]:
    """Return size and time of change of everything in the working folder."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in Path().rglob("*")}


def outcome(case: Case) -> dict[str, object]:
    """Run one line and return what it did."""
    text = "optim: {epochs: 7}\n" if case.file is None else case.file
    Path("my.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    before, loaded, usual = snapshot(), set(sys.modules), dict(os.environ)
    os.environ.update(case.environment)
    status: object = "none: it went on"
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            importlib.import_module(case.program).main(list(case.argv))
    except SystemExit as end:
        status = end.code
    except Exception as error:
        status = f"{type(error).__name__}: {error}"
    os.environ.clear()
    os.environ.update(usual)
    heavy = [name for name in HEAVY if name in sys.modules and name not in loaded]
    changed = snapshot() != before
    return {"status": status, "out": out.getvalue(), "err": err.getvalue(), "imported": heavy, "changed": changed}


if __name__ == "__main__":
    put_folders()
    json.dump([outcome(case) for case in (*WRONG, *HELP)], sys.stdout)
