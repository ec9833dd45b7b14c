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
    ("optim.epochs", "0", "optim.epochs = '?0'? .*expected a whole number >= 1"),
    ("optim.epochs", "1_0", "expected a whole number"),
    ("optim.epochs", "none", "optim.epochs = 'none' .*expected a whole number >= 1;"),
    ("optim.epochs", "9" * 5000, "expected a whole number"),
    ("optim.lr.init", "", "optim.lr.init = '' .*expected a number >= 0"),
    ("optim.lr.init", "nan", "expected a number"),
    ("optim.lr.init", "1e300", "expected a number >= 0 and <= 1e.30"),
    ("optim.bn.eps", "2", "expected a number > 0 and <= 1, or none"),
    ("optim.bn.momentum", "nan", "expected a number .*or none"),
    ("optim.momentum", "0", "--optim.nesterov False"),
    ("optim.ema.decay", "1", "expected a number >= 0 and < 1"),
    ("optim.label_smoothing", "-0.1", "expected a number"),
    ("optim.batch_size", "\uff16\uff14", "expected a whole number"),
    ("optim.optimizer", "adam", "expected one of sgd, adamp; did you mean adamp"),
    ("optim.lr.decay_type", "step", "expected one of cos, linear, default"),
    ("optim.start_epoch", "3", r"optim.start_epoch = 3 \(command line\): expected 0.*same command again continues"),
    ("optim.warmup.epochs", "101", "expected at most optim.epochs = 100"),
    ("optim.accumulation", "3", "optim.batch_size = 512 .*expected a multiple of optim.accumulation = 3"),
    ("data.image_size", "224px", "data.image_size = '224px' .*expected a whole number"),
    ("data.rrc_minimum", "0", "expected a number > 0 and <= 1"),
    ("data.crop_ratio", "1.1", "expected a number > 0 and <= 1, or none"),
    ("data.test_size", "x", "expected a whole number >= 1, or none"),
    ("data.cutmix.prob", "2", "expected a number >= 0 and <= 1"),
    ("data.cutmix.prob", "1", r"data.cutmix.beta = 0.0 \(default\): expected a number > 0.*--data.cutmix.beta 1.0"),
    ("data.cutmix.off_epoch", "-1", "expected a whole number >= 0"),
    ("data.relabel.fill", "-1e9", "expected a number >= -1000 and <= 1000"),
    ("data.relabel.temperature", "1e-4", "expected a number >= 0.001"),
    ("data.relabel.ground_truth_weight", "1.01", "expected a number >= 0 and <= 1"),
    ("data.relabel.use", "yes", "expected true or false; the default is True"),
    ("data.relabel.supervision", "localized", "expected one of localized_multi, .*did you mean localized_"),
    ("data.relabel.box_axes", "XY", "expected one of xy, yx; did you mean xy?"),
    ("data.extra.share", "1", "expected a number"),
    ("data.dataset", "cifar10", "expected one of imagenet"),
    ("data.decoder", "pil", "expected one of auto, "),
    ("data.data_path", "None", "expected text .*'' where none is wanted"),
    ("model.arch", "", "expected text .*the name of a network.*the default is resnet50"),
    ("compute.opt_level", "O3", "O3, pure float16, is refused"),
    ("compute.gpu", "-2", "expected a whole number >= -1"),
    ("compute.num_workers", "-1", "expected a whole number >= 0"),
    ("compute.distributed.backend", "mpi", "expected one of auto, nccl, gloo"),
    ("compute.distributed.num_processes_per_node", "0", "expected a whole number >= 1"),
    ("compute.distributed.url", "127.0.0.1:6946", "expected text .*tcp://HOST:PORT"),
    ("compute.distributed.url", "tcp://localhost:99999", "tcp://HOST:PORT"),
    ("util.checkpoint_minutes", "10m", "expected a number >= 0"),
    ("util.val_batch_size", "0", "expected a whole number >= 1"),
    ("util.test_only", "on", "expected true or false"),
    ("util.test_only", "true", "util.test_weight_file = '' .*--util.test_weight_file FILE"),
    # keys that do not exist
    ("optim.epoch", "3", "--optim.epoch .*no such key; did you mean --optim.epochs?"),
    ("batch_size", "3", "did you mean --optim.batch_size"),
    ("optim.lr", "0.1", "--optim.lr .*is a section, not a key; did you mean --optim.lr.init or"),
    ("model.arch.", "resnet18", "no such key; did you mean --model.arch"),
    ("zzz", "x", "--zzz .*no such key"),
    # files and folders
    ("data.data_path", "", "data.data_path = '' .*expected the folder that holds train/.*--data.data_path FOLDER"),
    ("data.data_path", "NOWHERE", "data.data_path = 'NOWHERE' .*no such folder"),
    ("data.data_path", "a" * 5000, "no such folder"),
    ("data.data_path", "ONLY_VAL", "has no train/ in it"),
    ("data.data_path", "ONLY_TRAIN", "has no val/ in it"),
    ("data.relabel.path", "", "expected the folder of label maps.*relabel annotate`.*--data.relabel.use False"),
    ("data.relabel.path", "NOWHERE", "no such folder; expected the folder of label maps.*relabel annotate`.*--data.relabel.use"),
    ("data.keep_list", "no.txt", "data.keep_list = 'no.txt' .*no such file; expected the list of the images"),
    ("model.weights", "no.pth", "model.weights = 'no.pth' .*no such file"),
    ("util.run_dir", "W.pth", "util.run_dir = 'W.pth' .*is a file"),
    ("util.run_dir", "DATA/val/run", "util.run_dir = 'DATA/val/run' .*lies among the images or label maps"),
    ("util.run_dir", "DATA/../LABELS/ant/run", "lies among the images or label maps"),
    ("util.run_dir", "a" * 300, "too long, or below a folder that may not be entered"),
    ("util.run_dir", "~/runs/x", "only a shell replaces ~, and not after =; write the whole path"),
]

# Content of my.yaml, and the message.
FILES: list[tuple[str | bytes, str]] = [
    ("optm:\n  epochs: 3\n", r"optm \(my.yaml, line 1\): no such key; did you mean optim"),
    ("optim:\n  epoch: 3\n", r"optim.epoch \(my.yaml, line 2\): no such key; did you mean optim.epochs\?"),
    ("epochs: 3\n", "epochs .*did you mean optim.epochs or optim.warmup.epochs"),
    ("config_file_path: x.yaml\n", r"config_file_path .*no such key; remove it"),
    ("optim:\n  <<: {epochs: 3}\n", r"optim.<< \(my.yaml, line 2\): no such key"),
    ("optim.epochs: 3\n", r"optim.epochs \(my.yaml, line 1\): keys are nested in a file"),
    ("optim:\n  batch_size: 64\n  batch-size: 64\n", "optim.batch_size .*line 3.*given twice, first on line 2"),
    ("optim: {epochs: 3}\noptim: {epochs: 3}\n", r"optim \(my.yaml, line 2\): given twice"),
    ("optim: 3\n", "is a section; its keys go below it, indented: optim.optimizer, "),
    ("optim:\n  epochs: {a: 1}\n", "expected one value, found a section"),
    ("optim:\n  epochs:\n", "optim.epochs = null .*line 2.*expected a whole number"),
    ("optim:\n  epochs: 3.0\n", "optim.epochs = 3.0 .*expected a whole number"),
    ("optim:\n  epochs: 1:30\n", "optim.epochs = '1:30' .*expected a whole number"),
    ("optim:\n  epochs: true\n", "optim.epochs = True .*expected a whole number"),
    ("optim:\n  epochs: !!int abc\n", "optim.epochs = 'abc' .*expected a whole number"),
    ("data:\n  relabel: {use: yes}\n", "data.relabel.use = 'yes' .*expected true or false"),
    ("util:\n  run_dir: 2024\n", "util.run_dir = 2024 .*expected text.*put it in quotes"),
    ('util: {run_dir: "a\\0b"}\n', "util.run_dir = 'a.x00b' .*expected text"),
    ('util: {run_dir: "\\UFFFFFFFF"}\n', "is not YAML"),
    ("util:\n  run_dir: !!python/object/apply:os.system ['touch HACKED']\n", "expected one value"),
    ("util:\n  run_dir: !!python/name:os.system ''\n", "the tag tag:yaml.org,2002:python/name:os.system"),
    ("optim: !!python/object:os.system {}\n", r"optim \(my.yaml, line 1\): .*found the tag .*; remove the tag"),
    ("util: &u\n  run_dir: *u\n", "expected one value, found a section"),
    ("optim: {epochs: *nowhere}\n", "is not YAML: line 1: found undefined alias"),
    ("- optim\n", r"config file \(my.yaml\): expected sections, each"),
    ("optim: {epochs: 3\n", r"config file \(my.yaml\): is not YAML: line 2: expected ',' or '}'"),
    ("optim:\n\tepochs: 3\n", "is not YAML: line 2"),
    ("a: 1\n---\nb: 2\n", "is not YAML: line 2: but found another document"),
    ("? [a]\n: 1\n", r"a key \(my.yaml, line 1\): must be plain text, found a list; write the name of a key"),
    ("[" * 500, "is not YAML"),
    ("#" * 1_000_001, "larger than a megabyte"),
    ("%YAML " + "9" * 5000 + ".1\n---\noptim: {}\n", "is not YAML"),
    (b"\xef\xbb\xbfoptim:\n  epoch: 3\n", r"optim.epoch \(my.yaml, line 2\): no such key"),  # with a byte order mark
    ("optim:\n  epoch: 3\n".encode("utf-16"), r"optim.epoch \(my.yaml, line 2\): no such key"),
    (b"optim:\r\n  epoch: 3\r\n", r"optim.epoch \(my.yaml, line 2\): no such key"),
    (b"util: {run_dir: r\xe9sum\xe9}\n", "is not YAML"),  # Latin-1
    (b"\x80\x02}q\x00.", "is not YAML"),  # a pickle
]

# Words after the flags for folders, and the message.
LINES = [
    (["util.test_only=True"], r"util.test_only=True \(command line\): .*write --util.test_only=True"),
    (["-optim.epochs", "3"], "-optim.epochs .*two hyphens; write --optim.epochs"),
    (["optim.epochs", "30"], "optim.epochs .*two hyphens; write --optim.epochs"),
    (["---optim.epochs", "30"], "_optim.epochs .*no such key; did you mean"),
    (["\u2013\u2013optim.epochs=30"], "optim.epochs=30 .*belongs to no flag|two hyphens"),  # dashes of a word processor
    (["my.yaml"], "a config file goes after its flag; write --config-file-path my.yaml"),
    (["--util.run_dir", "two", "words"], "words .*belongs to no flag; .*in quotes"),
    (["-1"], "-1 .*belongs to no flag"),
    (["--optim.epochs", "30", "--", "--optim.batch_size", "64"], r"-- \(command line\): what follows would be dropped"),
    (["--util.test_only"], "--util.test_only .*has no value; write --util.test_only VALUE"),
    (["--util.test_only", "--optim.epochs", "30"], "--util.test_only .*has no value"),
    (["--config-file-path", ""], "--config-file-path .*is empty"),
    (["--optim.epochs", "3", "--optim.epochs", "4"], "--optim.epochs .*given twice: '3' and '4'; keep one"),
    (["--optim.batch_size", "64", "--optim.batch-size=64"], "--optim.batch-size .*given twice"),
    (["--=3"], "--=3 .*has no name; write --NAME VALUE"),
    (["--Optim.Epochs", "3"], r"did you mean --optim.epochs\?"),
    (["--optim.epochs 30"], "--optim.epochs 30 .*no such key; did you mean --optim.epochs"),
    (["--optim.epochs=--3"], "optim.epochs = '--3' .*expected a whole number"),
    (["--config-file-path", "no.yaml"], "config file .*no.yaml.*cannot be read"),
    (["--config-file-path", "DATA"], r"config file \(DATA\): cannot be read: Is a directory.*give an existing file"),
    (["--trace", "1"], "--trace .*no such key"),  # fire's own flags and names
    (["--flags", "1"], "--flags .*no such key"),
    (["--help=yes"], "--help .*no such key"),
    (["train"], "train .*belongs to no flag"),
    (["--util.run_dir", "\udcff", "--optim.epoch", "3"], "--optim.epoch .*no such key"),  # a byte that is no UTF-8
]

# Misspellings of --config_file_path; as the file might name the folders, nothing else is reported.
MISSPELT = ("config", "config-file", "CONFIG_FILE_PATH")

MAIN_HELP: list[list[str]] = [
    ["--help"],
    ["-h"],
    ["--config-file-path", "my.yaml", "--help"],
    ["--optim.epochs", "--help"],
    ["--", "--help"],
]
TOOLS_HELP: list[list[str]] = [
    [],
    ["--help"],
    ["-h", "annotate"],
    ["annotate", "--help"],
    ["annotate", "nowhere", "--top_k", "-h"],
    ["doctor", "--help"],
]

# What an evaluation still needs, after EVALUATION.
EVALUATIONS = [
    ({"eval.real": "no.json"}, "eval.real = 'no.json' .*no such file; expected real.json of ReaL; correct --eval.real"),
    ({"eval.multilabel": "DATA"}, "eval.multilabel = 'DATA' .*no such file; expected human_accuracy_v3.0.0.json"),
    ({"eval.labels": "no.tsv"}, "eval.labels = 'no.tsv' .*no such file; expected true labels"),
    ({"eval.imagenet_v2": "W.pth"}, "eval.imagenet_v2 = 'W.pth' .*no such folder; expected a variant of ImageNetV2"),
    ({"eval.imagenet_a": "NO"}, "eval.imagenet_a = 'NO' .*no such folder"),
    ({"eval.imagenet_c": "NO"}, "eval.imagenet_c = 'NO' .*no such folder; .*CORRUPTION/SEVERITY/WNID/IMAGE"),
    ({"data.data_path": ""}, "data.data_path = '' .*expected the folder that holds train/"),
    ({"data.data_path": "", "eval.imagenet_a": "DATA", "eval.labels": "W.pth"}, "data.data_path = '' .*expected"),
    ({"data.data_path": "ONLY_TRAIN"}, "has no val/ in it"),
    ({"util.test_weight_file": "no.pth"}, "util.test_weight_file = 'no.pth' .*no such file"),
]

# Several mistakes, in whole command lines: how many, and the messages in their order.
TOGETHER: list[tuple[list[str], int, str]] = [
    ([], 2, "data.data_path = ''.*\n.*data.relabel.path = ''"),
    (["stray", "--optim.epochs", "ten"], 4, "stray .*\n.*optim.epochs = 'ten'"),
    (["--util.run_dir", "--", "x"], 5, "--util.run_dir .*has no value.*\n.*-- .*dropped.*\n.*x .*belongs to no flag"),
    (["--data.data_path=DATA/train", "--data.relabel.use=False"], 2, "has no train/ in it.*\n.*has no val/ in it"),
    (["--util.test_only", "--zz"], 2, "--util.test_only .*no value.*\n.*--zz .*no such key"),
    (["--config-file-path", "no.yaml", "--optim.epochs", "x", "y"], 3, "y .*\n.*no.yaml.*\n.*optim.epochs = 'x'"),
]

# Variables that torchrun sets, and the message.
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
SECOND_PROCESS = TORCHRUN | {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
ENVIRONMENTS = [
    ({"LOCAL_RANK": "1"}, r"LOCAL_RANK = '1' \(environment\): means several processes, but RANK, WORLD_SIZE"),
    ({"RANK": "1", "WORLD_SIZE": "2"}, "RANK = '1' .*LOCAL_RANK, LOCAL_WORLD_SIZE, .*are not set; .*torchrun"),
    ({"LOCAL_RANK": ""}, "LOCAL_RANK = '' .*are not set"),
    (TORCHRUN, "RANK = '1' .*but MASTER_ADDR, MASTER_PORT are not set"),
    (SECOND_PROCESS | {"RANK": "-1"}, "RANK = '-1' .*expected a whole number"),
    (SECOND_PROCESS | {"RANK": "2"}, "RANK = '2' .*expected less than WORLD_SIZE = 2"),
    (SECOND_PROCESS | {"LOCAL_RANK": "3"}, "LOCAL_RANK = '3' .*expected less than LOCAL_WORLD_SIZE = 2"),
    (SECOND_PROCESS | {"MASTER_PORT": "tcp"}, "MASTER_PORT = 'tcp' .*expected a whole number"),
    (SECOND_PROCESS | {"MASTER_PORT": "99999"}, "MASTER_PORT = '99999' .*expected at most 65535"),
    (SECOND_PROCESS | {"LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE = '3' .*expected at most WORLD_SIZE = 2"),
]

# Words of `python -m relabel`, how many mistakes, the message.
TOOLS: list[tuple[list[str], int, str]] = [
    (["anotate", "a", "b"], 1, "did you mean annotate"),
    (["--images", "DATA", "annotate"], 1, "the command comes first; write python -m relabel annotate"),
    (["digits", "--out", "new", "--train", "9", "--vall", "10"], 2, "--train = '9'.*\n.*--vall "),
    (["digits", "out=new"], 1, "write --out=new"),
    (["digits", "--out=new", "--seed", "-1"], 1, "--seed = '-1' .*expected a whole number >= 0"),
    (["annotate", "nowhere", "new", "--top_k", "0"], 2, "IMAGES = 'nowhere'.*\n.*--top_k = '0'"),
    (["annotate", "nowhere"], 2, "IMAGES = 'nowhere'.*\n.*OUT .*is missing"),
    (["annotate", "DATA", "new", "--size", "224"], 1, "--size = '224' .*such as 56x72"),
    (["annotate", "DATA", "new", "--mean=0.5"], 1, "--mean = '0.5' .*three numbers such as"),
    (["annotate", "DATA", "new", "--unlabeled", "true"], 1, r"did you mean --unlabelled\?"),
    (["show", "a", "--labels", "."], 2, "--images DIR .*is missing.*\n.*--out FILE.png .*is missing"),
    (["show", "--labels", ".", "--images", ".", "--out", "a.jpg"], 1, "--out = 'a.jpg' .*expected a .png file"),
    (["unpack", "W.pth", "new"], 1, "LABELS = 'W.pth' .*expected a folder that exists"),
    (["check", "nowhere", "--teacher_accuracy", "101"], 2, "LABELS = 'nowhere'.*\n.*a number > 1 and <= 100"),
    (["export-labels", ".", "x.tsv", "--images", ".", "--form", "hard"], 1, "--form = 'hard'.*one of multi-hot, soft"),
    (["compare", "W.pth", "W.pth", "W.pth"], 1, "W.pth .*belongs to no flag"),
    (["export-model", "w.pth", "out"], 2, "WEIGHTS = 'w.pth' .*\n.*--form timm.backbone.onnx .*is missing"),
    (["digits-annotator", "--out", "no/a.pth"], 1, "--out = 'no/a.pth' .*expected a file in a folder that exists"),
    (["doctor", "torch"], 1, "torch .*belongs to no flag"),
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
