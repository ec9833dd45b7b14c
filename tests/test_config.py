"""The configuration: where values come from, what is refused and how that is told, and that the tree stays as it is."""

import copy
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from munch import Munch

from utils.config import BASE_FILE, changed_keys, load_config, to_plain
from utils.config_file import read_config_file, to_yaml
from utils.config_schema import LEAVES, flatten
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
Load = Callable[..., Any]

# FIELD 2: key -> default of 2021. The two that depart: folders have no default, and nccl became auto.
KEYS_OF_2021: dict[str, Any] = {
    "model.arch": "resnet50", "data.dataset": "imagenet", "data.data_path": "", "data.image_size": 224,
    "data.rrc_minimum": 0.08, "data.crop_ratio": 0.875, "data.relabel.use": True, "data.relabel.path": "",
    "data.cutmix.prob": 0.0, "data.cutmix.beta": 0.0, "data.cutmix.off_epoch": 5, "optim.optimizer": "sgd",
    "optim.epochs": 100, "optim.start_epoch": 0, "optim.batch_size": 512, "optim.bn.momentum": 0.9,
    "optim.bn.eps": 1e-5, "optim.lr.init": 0.5, "optim.lr.decay_type": "cos", "optim.warmup.lr": 0.0,
    "optim.warmup.epochs": 5, "optim.nesterov": True, "optim.momentum": 0.9, "optim.wd.base": 1e-5,
    "optim.label_smoothing": 0.0, "compute.seed": -1, "compute.gpu": -1, "compute.opt_level": "O1",
    "compute.num_workers": 32, "compute.distributed.use": True, "compute.distributed.num_processes_per_node": 1,
    "compute.distributed.url": "tcp://127.0.0.1:6946", "compute.distributed.backend": "auto", "util.print_freq": 250,
    "util.val_batch_size": 512, "util.test_only": False, "util.test_weight_file": "",
}  # fmt: skip

FILE_OF_2021 = """\
model: {arch: resnet18}
data:
  dataset: imagenet
  data_path: DATA
  image_size: 224
  rrc_minimum: 0.08
  crop_ratio: 0.875
  relabel:
    use: True
    path: LABELS
  cutmix: {prob: 1.0, beta: 1.0, off_epoch: 5}
optim:
  optimizer: adamp
  epochs: 300
  start_epoch: 0
  batch_size: 1024
  bn: {momentum: 0.9, eps: 1e-5}
  lr: {init: 2e-3, decay_type: cos}
  warmup: {lr: 0.0, epochs: 5}
  nesterov: True
  momentum: 0.9
  wd: {base: 1e-2}
  label_smoothing: 0.0
compute:
  seed: -1
  gpu: -1
  opt_level: O1
  num_workers: 32
  distributed: {use: True, num_processes_per_node: 1, url: tcp://127.0.0.1:6946, backend: nccl}
util: {print_freq: 250, val_batch_size: 512, test_only: False, test_weight_file: ''}
"""


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """load(yaml text or None, **flags with __ for a dot): in a folder with DATA/train, DATA/val, LABELS and W.pth."""
    for folder in ("DATA/train", "DATA/val", "LABELS", "ONLY_VAL/val", "ONLY_TRAIN/train"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "W.pth").touch()
    monkeypatch.chdir(tmp_path)

    def load_here(text: str | None = None, flags: dict[str, str] | None = None) -> Any:
        if text is not None:
            Path("my.yaml").write_text(text, encoding="utf-8")
        folders = {"data.data_path": "DATA", "data.relabel.path": "LABELS"}
        return load_config("" if text is None else "my.yaml", {**folders, **(flags or {})})

    return load_here


def test_base_holds_the_schema_s_keys_and_those_of_2021_with_their_defaults() -> None:
    base, problems = read_config_file(BASE_FILE, "base")
    assert problems == []
    assert list(base) == list(LEAVES)  # in the same order, so that both files read side by side
    values = {key: setting.value for key, setting in base.items()}
    assert {key: values[key] for key in KEYS_OF_2021} == KEYS_OF_2021


@pytest.mark.parametrize(
    ("text", "problems", "match"),
    [
        (None, 1, r"config file \(base.yaml\): cannot be read"),
        ("nothing: 1\n", len(LEAVES) + 1, r"data.data_path \(.*base.yaml\): base.yaml must hold every key"),
    ],
)
def test_a_damaged_base_is_an_error_like_any_other(
    load: Load, monkeypatch: pytest.MonkeyPatch, text: str | None, problems: int, match: str
) -> None:
    monkeypatch.setattr("utils.config.BASE_FILE", Path("base.yaml"))
    if text is not None:
        Path("base.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=match) as caught:
        load_config("", {})
    assert str(caught.value).startswith(f"{problems} problem")


def test_every_key_is_explained_in_base() -> None:
    lines = [
        line for line in BASE_FILE.read_text(encoding="utf-8").splitlines() if re.match(r" +[a-z_0-9]+: [^{\s]", line)
    ]
    assert len(lines) == len(LEAVES)
    plain = {"epochs: 100", "momentum: 0.9", "eps: 1e-5"}
    assert [line for line in lines if "#" not in line and line.strip() not in plain] == []


def test_no_key_hides_behind_a_method_of_a_dict() -> None:
    names = {name for key in LEAVES for name in key.split(".")}
    assert names.isdisjoint(dir(dict)) and names.isdisjoint(vars(Munch))


def test_a_config_file_of_2021_with_every_key_runs_unchanged(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    config = load(FILE_OF_2021, {})
    assert set(KEYS_OF_2021) == {key for key in LEAVES if _named_in(FILE_OF_2021, key)}
    assert (config.optim.lr.init, config.optim.wd.base, config.optim.bn.eps) == (0.002, 0.01, 1e-5)
    assert capsys.readouterr().err == ""


def _named_in(text: str, key: str) -> bool:
    Path("2021.yaml").write_text(text, encoding="utf-8")
    return key in read_config_file(Path("2021.yaml"), "")[0]


def test_flags_win_over_the_file_and_the_file_over_base(load: Load) -> None:
    config = load("optim: {epochs: 7, batch-size: 64}\ncompute:\n", {"optim.epochs": "9", "util.print_freq": "3"})
    assert (config.optim.epochs, config.optim.batch_size, config.util.print_freq) == (9, 64, 3)
    assert config.optim.momentum == 0.9
    assert config.util.run_dir == "runs/my"


def test_run_dir_without_a_config_file(load: Load) -> None:
    assert load().util.run_dir == "runs/base"
    assert load(None, {"util.run_dir": "here"}).util.run_dir == "here"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("optim.lr.init", "1e-3", 0.001),
        ("optim.lr.init", "5e-05", 5e-5),
        ("optim.lr.init", "1e1", 10.0),
        ("optim.lr.init", ".5", 0.5),
        ("optim.lr.init", "2", 2.0),
        ("optim.warmup.epochs", "010", 10),
        ("optim.momentum", "+0.5", 0.5),
        ("data.relabel.fill", "-1.5e0", -1.5),
        ("compute.gpu", "-1", -1),
        ("util.tensorboard", "TRUE", True),
        ("util.tensorboard", "false", False),
        ("data.crop_ratio", "none", None),
        ("data.crop_ratio", "null", None),
        ("data.test_size", "None", None),
        ("optim.bn.momentum", "Null", None),
        ("util.run_dir", "1:30", "1:30"),
        ("util.run_dir", "yes", "yes"),
        ("util.run_dir", "2024_01", "2024_01"),
        ("util.run_dir", "2024-01-02", "2024-01-02"),
        ("util.run_dir", "exp#3", "exp#3"),
        ("util.run_dir", "0x1f", "0x1f"),
        ("util.run_dir", "a=b", "a=b"),
    ],
)
def test_a_value_means_the_same_in_a_file_and_on_the_command_line(load: Load, key: str, text: str, value: Any) -> None:
    *sections, name = key.split(".")
    in_file = "".join(f"{'  ' * depth}{section}:\n" for depth, section in enumerate(sections))
    for config in (load(f"{in_file}{'  ' * len(sections)}{name}: {text}\n"), load(None, {key: text})):
        found = flatten(to_plain(config))[key]
        assert found == value and type(found) is type(value)


BAD_FLAGS = [
    ("optim.epochs", "ten", r"optim.epochs = 'ten' \(command line\): expected a whole number >= 1; the default is 100"),
    ("optim.epochs", "0", "optim.epochs = 0 .*expected a whole number >= 1"),
    ("optim.epochs", "1.5", "expected a whole number"),
    ("optim.epochs", "1e2", "expected a whole number"),
    ("optim.epochs", "1_0", "expected a whole number"),
    ("optim.epochs", "none", "optim.epochs = 'none' .*expected a whole number >= 1;"),
    ("optim.epochs", "True", "expected a whole number"),
    ("optim.epochs", "9" * 5000, "expected a whole number"),
    ("optim.lr.init", "", "optim.lr.init = '' .*expected a number >= 0"),
    ("optim.lr.init", "1e400", "optim.lr.init = '1e400' .*expected a number"),
    ("optim.lr.init", "nan", "expected a number"),
    ("optim.lr.init", "inf", "expected a number"),
    ("optim.lr.init", "-0.1", "expected a number >= 0"),
    ("optim.lr.init", "0.1,0.2", "expected a number"),
    ("optim.momentum", "1", "expected a number >= 0 and < 1"),
    ("data.rrc_minimum", "0", "expected a number > 0 and <= 1"),
    ("data.crop_ratio", "1.1", "expected a number > 0 and <= 1, or none"),
    ("data.test_size", "x", "expected a whole number >= 1, or none"),
    ("data.cutmix.prob", "2", "expected a number >= 0 and <= 1"),
    ("data.relabel.temperature", "1e-4", "expected a number >= 0.001"),
    ("data.relabel.use", "yes", "expected true or false; the default is True"),
    ("data.relabel.use", "1", "expected true or false"),
    ("data.relabel.supervision", "localized", "expected one of localized_multi, .*did you mean localized_"),
    ("data.relabel.box_axes", "XY", "expected one of xy, yx; did you mean xy?"),
    ("data.dataset", "cifar10", "expected one of imagenet"),
    ("data.data_path", "None", "expected text .*'' where none is wanted"),
    ("util.test_weight_file", "null", "expected text"),
    ("model.arch", "", "expected text .*the name of a network.*the default is resnet50"),
    ("optim.optimizer", "adam", "expected one of sgd, adamp; did you mean adamp"),
    ("optim.lr.decay_type", "step", "expected one of cos, linear, default"),
    ("compute.opt_level", "O3", "O3, pure float16, is refused"),
    ("compute.opt_level", "o1", "did you mean O1"),
    ("compute.gpu", "-2", "expected a whole number >= -1"),
    ("compute.distributed.backend", "mpi", "expected one of auto, nccl, gloo"),
    ("compute.distributed.url", "127.0.0.1:6946", "expected text .*tcp://HOST:PORT"),
    ("compute.distributed.url", "tcp://localhost:99999", "tcp://HOST:PORT"),
    ("compute.distributed.url", "tcp://localhost", "tcp://HOST:PORT"),
    ("optim.start_epoch", "3", r"optim.start_epoch = 3 \(command line\): expected 0.*same command again continues"),
    ("optim.warmup.epochs", "101", "expected at most optim.epochs = 100"),
    ("data.cutmix.prob", "1", r"data.cutmix.beta = 0.0 \(default\): expected a number > 0.*--data.cutmix.beta 1.0"),
    ("optim.accumulation", "3", "optim.batch_size = 512 .*expected a multiple of optim.accumulation = 3"),
    ("optim.momentum", "0", "--optim.nesterov False"),
    ("util.test_only", "true", "util.test_weight_file = '' .*--util.test_weight_file FILE"),
    ("optim.epoch", "3", "--optim.epoch .*no such key; did you mean --optim.epochs?"),
    ("batch_size", "3", "did you mean --optim.batch_size"),
    ("data.batch_size", "3", "did you mean --optim.batch_size"),
    ("optim.lr", "0.1", "--optim.lr .*is a section, not a key; did you mean --optim.lr.init or"),
    ("dta.relabel", "x", "no such key; did you mean --data.relabel"),
    ("zzz", "x", "--zzz .*no such key"),
    ("data.data_path", "", "data.data_path = '' .*expected the folder that holds train/.*--data.data_path FOLDER"),
    ("data.data_path", "NOWHERE", "data.data_path = 'NOWHERE' .*no such folder"),
    ("data.data_path", "a" * 5000, "no such folder"),
    ("data.data_path", "ONLY_VAL", "has no train/ in it"),
    ("data.data_path", "ONLY_TRAIN", "has no val/ in it"),
    ("data.relabel.path", "", "expected the folder of label maps.*relabel annotate`.*--data.relabel.use False"),
    (
        "data.relabel.path",
        "NOWHERE",
        "no such folder; expected label maps.*relabel annotate`.*--data.relabel.use False",
    ),
    ("util.run_dir", "W.pth", "util.run_dir = 'W.pth' .*is a file"),
]


@pytest.mark.parametrize(("key", "text", "match"), BAD_FLAGS)
def test_a_bad_flag_is_refused(load: Load, key: str, text: str, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        load(None, {key: text})
    assert str(caught.value).startswith("1 problem; nothing was started.")


BAD_FILES = [
    ("optm:\n  epochs: 3\n", r"optm \(my.yaml, line 1\): no such key; did you mean optim"),
    ("optim:\n  epoch: 3\n", r"optim.epoch \(my.yaml, line 2\): no such key; did you mean optim.epochs\?"),
    ("epochs: 3\n", "epochs .*did you mean optim.epochs or optim.warmup.epochs"),
    ("optim.epochs: 3\n", r"optim.epochs \(my.yaml, line 1\): keys are nested in a file"),
    ("optim:\n  epochs: 3\n  epochs: 4\n", r"optim.epochs \(my.yaml, line 3\): given twice, first on line 2"),
    ("optim:\n  batch_size: 64\n  batch-size: 64\n", "optim.batch_size .*line 3.*given twice, first on line 2"),
    ("optim: {epochs: 3}\noptim: {epochs: 3}\n", r"optim \(my.yaml, line 2\): given twice"),
    ("optim: 3\n", "is a section; its keys go below it, indented: optim.optimizer, "),
    ("optim:\n  epochs: {a: 1}\n", "expected one value, found a section"),
    ("optim:\n  epochs: [1, 2]\n", "expected one value, found a list"),
    ("optim:\n  epochs:\n", "optim.epochs = null .*line 2.*expected a whole number"),
    ("optim:\n  epochs: '3'\n", "optim.epochs = '3' .*expected a whole number"),
    ("optim:\n  epochs: 3.0\n", "optim.epochs = 3.0 .*expected a whole number"),
    ("optim:\n  epochs: 1:30\n", "optim.epochs = '1:30' .*expected a whole number"),
    ("optim:\n  epochs: 0o17\n", "optim.epochs = '0o17' .*expected a whole number"),
    ("optim:\n  epochs: true\n", "optim.epochs = True .*expected a whole number"),
    ("optim:\n  epochs: !!int abc\n", "optim.epochs = 'abc' .*expected a whole number"),
    ("optim:\n  lr: {init: .inf}\n", "optim.lr.init = '.inf' .*expected a number"),
    ("data:\n  relabel: {use: yes}\n", "data.relabel.use = 'yes' .*expected true or false"),
    ("data:\n  relabel: {use: off}\n", "data.relabel.use = 'off' .*expected true or false"),
    ("util:\n  run_dir: 2024\n", "util.run_dir = 2024 .*expected text.*put it in quotes"),
    ("util:\n  run_dir: !!python/object/apply:os.system ['touch HACKED']\n", "expected one value"),
    ("util:\n  run_dir: !!python/name:os.system ''\n", "the tag tag:yaml.org,2002:python/name:os.system"),
    ("util:\n  run_dir: !!timestamp x\n", "remove the tag"),
    ("util: &u\n  run_dir: *u\n", "expected one value, found a section"),
    ("- optim\n", r"config file \(my.yaml\): expected sections such as `data:`"),
    ("optim\n", "expected sections"),
    ("optim: {epochs: 3\n", r"config file \(my.yaml\): is not YAML: line 2: expected ',' or '}'"),
    ("optim:\n\tepochs: 3\n", "is not YAML: line 2"),
    ("a: 1\n---\nb: 2\n", "is not YAML: line 2: but found another document"),
    ("? [a]\n: 1\n", r"a key \(my.yaml, line 1\): must be plain text, found a list; write a name such as"),
    ("optim:\n  ? {a: 1}\n  : 1\n", r"a key of optim \(my.yaml, line 2\): must be plain text, found a section"),
    ("optim:\n  1: 3\n", r"a key of optim \(my.yaml, line 2\): must be plain text, found `1`;"),
    ("optim:\n  ~: 3\n", "must be plain text, found `~`"),
    ("config_file_path: x.yaml\n", r"config_file_path .*no such key; remove it"),
    ("<<: {a: 1}\n", "<< .*no such key"),
    ("\0\1", "is not YAML"),
    ("[" * 500, "is not YAML"),
    ("#" * 1_000_001, "larger than a megabyte"),
]


@pytest.mark.parametrize(("text", "match"), BAD_FILES)
def test_a_bad_file_is_refused(load: Load, text: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        load(text)
    assert not Path("HACKED").exists()


@pytest.mark.parametrize("text", ["", "# nothing\n", "optim:\ndata:\n"])
def test_a_file_that_changes_nothing(load: Load, text: str) -> None:
    assert changed_keys(to_plain(load()), to_plain(load(text))) == ["util.run_dir"]


@pytest.mark.parametrize(("path", "match"), [("no.yaml", "No such file"), ("DATA", "Is a directory")])
def test_a_config_file_that_cannot_be_read(load: Load, path: str, match: str) -> None:
    with pytest.raises(UserError, match=rf"config file \({path}\): cannot be read: {match}.*give an existing file"):
        load_config(path, {"optim.epochs": "300"})


def test_everything_wrong_is_told_at_once_and_once(load: Load) -> None:
    flags = {"data.datapath": "DATA", "optim.epochs": "x", "data.relabel.path": "NOWHERE", "optim.accumulation": "5"}
    Path("my.yaml").write_text("optim:\n  start_epoch: 2\n  warmup: {epochs: 200}\ndata:\n  lightning: 0.1\n")
    with pytest.raises(UserError) as caught:
        load_config("my.yaml", flags)
    subjects = [line[4:].split(" ")[0] for line in str(caught.value).splitlines() if line.startswith("  - ")]
    assert sorted(subjects) == [
        "--data.datapath",  # and not also: data.data_path is empty
        "data.lightning",
        "data.relabel.path",
        "optim.batch_size",
        "optim.epochs",  # and not also: warmup.epochs against it
        "optim.start_epoch",
    ]
    assert str(caught.value).startswith("6 problems") and "python main.py --help" in str(caught.value)


@pytest.mark.parametrize("labels", ["", "NOWHERE"])
def test_evaluation_needs_val_and_weights_only(load: Load, capsys: pytest.CaptureFixture[str], labels: str) -> None:
    flags = {"util.test_only": "True", "data.data_path": "ONLY_VAL", "data.relabel.path": labels}
    load("data: {relabel: {fill: -2.0}, cutmix: {beta: 1.0}}", {**flags, "util.test_weight_file": "W.pth"})
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match=r"util.test_weight_file = 'no.pth' .*no such file"):
        load(None, {**flags, "util.test_weight_file": "no.pth"})
    with pytest.raises(UserError, match="has no val/ in it"):
        load(None, {**flags, "util.test_weight_file": "W.pth", "data.data_path": "ONLY_TRAIN"})


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (
            {"eval.real": "no.json"},
            r"eval.real = 'no.json' .*no such file; expected real.json of ReaL; correct --eval.real",
        ),
        ({"eval.multilabel": "DATA"}, "eval.multilabel = 'DATA' .*no such file; expected human_accuracy_v3.0.0.json"),
        ({"eval.labels": "no.tsv"}, "eval.labels = 'no.tsv' .*no such file; expected true labels"),
        (
            {"eval.imagenet_v2": "W.pth"},
            "eval.imagenet_v2 = 'W.pth' .*no such folder; expected a variant of ImageNetV2",
        ),
        ({"eval.imagenet_a": "NO"}, "eval.imagenet_a = 'NO' .*no such folder"),
        ({"eval.imagenet_r": "NO"}, "eval.imagenet_r = 'NO' .*no such folder"),
        ({"eval.imagenet_c": "NO"}, "eval.imagenet_c = 'NO' .*no such folder; .*CORRUPTION/SEVERITY/WNID/IMAGE"),
        ({"data.data_path": ""}, "data.data_path = '' .*expected the folder that holds train/"),
        ({"data.data_path": "", "eval.predictions": "True"}, "data.data_path = '' .*expected the folder"),
        ({"data.data_path": "", "eval.imagenet_a": "DATA", "eval.labels": "W.pth"}, "data.data_path = '' .*expected"),
    ],
)
def test_what_an_evaluation_needs_must_be_there(load: Load, flags: dict[str, str], match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        load(None, {"util.test_only": "True", "util.test_weight_file": "W.pth", **flags})
    assert str(caught.value).startswith("1 problem;")


def test_image_sets_of_their_own_need_no_data_path(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    flags = {"util.test_only": "True", "util.test_weight_file": "W.pth", "data.data_path": ""}
    for key in ("imagenet_v2", "imagenet_a", "imagenet_r", "imagenet_c"):
        assert load(None, {**flags, f"eval.{key}": "DATA"}).eval[key] == "DATA"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("flags", "warning"),
    [
        ({"data.relabel.use": "False"}, r"data.relabel.path = 'LABELS' \(command line\) has no effect"),
        ({"data.relabel.box_axes": "yx", "data.relabel.supervision": "global_multi"}, "box_axes = 'yx' .*whole image"),
        ({"data.relabel.temperature": "2", "data.relabel.supervision": "global_single"}, "largest logit"),
        ({"data.cutmix.beta": "1"}, "data.cutmix.beta = 1.0 .*no effect: data.cutmix.prob is 0"),
        ({"data.cutmix.off_epoch": "0"}, "data.cutmix.off_epoch = 0 .*no effect"),
        ({"optim.optimizer": "adamp", "optim.nesterov": "False"}, "optim.nesterov = False .*no effect"),
        ({"optim.warmup.epochs": "0", "optim.warmup.lr": "0.1"}, "optim.warmup.lr = 0.1 .*no effect"),
        ({"compute.distributed.use": "False", "compute.distributed.backend": "gloo"}, "backend = 'gloo' .*no effect"),
        ({"compute.gpu": "0", "compute.distributed.num_processes_per_node": "2"}, "compute.gpu = 0 means one process"),
        ({"util.test_weight_file": "W.pth"}, "util.test_weight_file = 'W.pth' .*no effect"),
        ({"eval.real": "no.json"}, "eval.real = 'no.json' .*no effect: util.test_only is False"),
        ({"eval.predictions": "True"}, "eval.predictions = True .*no effect"),
        ({"data.cutmix.prob": "1", "data.cutmix.beta": "1", "optim.epochs": "5"}, "CutMix never runs"),
    ],
)
def test_a_setting_without_effect_warns(
    load: Load, capsys: pytest.CaptureFixture[str], flags: dict[str, str], warning: str
) -> None:
    load(None, flags)
    error = capsys.readouterr().err
    assert re.search(f"^warning: .*{warning}", error) and error.count("\n") == 1


def test_a_default_that_is_disabled_does_not_warn(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    load("data: {cutmix: {beta: 0, off_epoch: 5}}", {"optim.optimizer": "adamp", "optim.nesterov": "true"})
    assert capsys.readouterr().err == ""


def test_the_tree_cannot_be_changed_or_misread(load: Load) -> None:
    config = load()
    for change in (
        lambda: setattr(config.optim, "epochs", 3),
        lambda: setattr(config.optim, "epoch", 3),
        lambda: delattr(config.optim, "epochs"),
    ):
        with pytest.raises(AttributeError, match="frozen"):
            change()
    for change in (
        lambda: config.optim.__setitem__("epochs", 3),
        lambda: config.optim.update(epochs=3),
        lambda: config.pop("optim"),
        lambda: config.optim.clear(),
    ):
        with pytest.raises(TypeError, match="frozen"):
            change()
    with pytest.raises(AttributeError, match="no key 'epoch' in the config; did you mean epochs"):
        _ = config.optim.epoch
    assert config.optim.epochs == 100 and not hasattr(config, "optimizer")


@pytest.mark.parametrize(
    "again", [copy.deepcopy, copy.copy, lambda c: c.copy(), lambda c: pickle.loads(pickle.dumps(c))]
)
def test_copies_are_equal_and_frozen(load: Load, again: Callable[[Any], Any]) -> None:
    config = again(load())
    assert config == load() and isinstance(config, Munch)
    with pytest.raises(AttributeError, match="frozen"):
        config.optim.lr.init = 3.0


def test_plain_tree_and_yaml_lead_back_to_the_same_config(load: Load, tmp_path: Path) -> None:
    config = load(None, {"util.run_dir": "1e-3", "data.crop_ratio": "none", "optim.wd.base": "1e-5"})
    plain = to_plain(config)
    assert {type(plain), type(plain["optim"]), type(plain["optim"]["lr"])} == {dict}
    (tmp_path / "again.yaml").write_text(to_yaml(plain), encoding="utf-8")
    assert to_plain(load_config("again.yaml", {})) == plain


@settings(max_examples=50, deadline=None)
@given(st.text() | st.sampled_from(["1e-3", "010", "null", "True", "~", "\x85", "a\nb", " #", "é"]))
def test_any_text_survives_yaml(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "text.yaml"
    path.write_text(to_yaml({"model": {"arch": text}}), encoding="utf-8", newline="")
    found, problems = read_config_file(path, "")
    assert problems == []
    assert found["model.arch"].value == text


def test_changed_keys_names_every_difference() -> None:
    old = {"optim": {"epochs": 3, "lr": {"init": 0.1}}, "util": {"gone": 1}}
    new = {"optim": {"epochs": 4, "lr": {"init": 0.1}}, "util": {"new": 1}}
    assert changed_keys(old, new) == ["optim.epochs", "util.new", "util.gone"]
    assert changed_keys(old, old) == []


def test_neither_torch_nor_numpy_is_imported() -> None:
    code = "import sys, main; print(sorted({'torch', 'numpy', 'torchvision', 'relabel.trainer'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
