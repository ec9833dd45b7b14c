"""The configuration: where values come from, what is reported, and that the tree stays as it is.

The list of mistakes is in tests/wrong_commands.py.
"""

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from munch import Munch

from relabel.config.load import BASE_FILE, fire_arguments, load_config, read_config
from relabel.config.schema import SCHEMA
from tests.strategies import FEW
from tests.wrong_commands import FOLDERS, put_folders
from utils.config.dotted_keys import flatten, nest
from utils.config.yaml_file import read_config_file, to_yaml
from utils.errors import UserError

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

# Since the network brings its own; in 2021 every network was given the same.
OWN_VALUES = {"data.crop_ratio": "auto", "optim.bn.eps": None}

CHANGED = {"data.data_path": "DATA", "data.relabel.path": "LABELS", "data.cutmix.prob": 1.0, "data.cutmix.beta": 1.0}
CHANGED |= {"optim.optimizer": "adamp", "optim.lr.init": 2e-3, "compute.distributed.backend": "nccl"}
FILE_OF_2021 = yaml.safe_dump(nest(KEYS_OF_2021 | CHANGED))  # writes 0.002, True and ''


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load a YAML text, if given, and flags, in a folder with DATA/train, DATA/val, LABELS and W.pth."""
    monkeypatch.chdir(tmp_path)
    put_folders()

    def load_here(text: str | None = None, flags: dict[str, str] | None = None) -> Any:
        if text is not None:
            Path("my.yaml").write_text(text, encoding="utf-8")
        return load_config("" if text is None else "my.yaml", {**FOLDERS, **(flags or {})})

    return load_here


def test_base_holds_the_schema_s_keys_and_those_of_2021_with_their_defaults() -> None:
    base, problems = read_config_file(BASE_FILE, "base", SCHEMA)
    assert problems == []
    assert list(base) == list(SCHEMA.types)  # in the same order, so that both files read side by side
    values = {key: setting.value for key, setting in base.items()}
    assert {key: values[key] for key in KEYS_OF_2021} == KEYS_OF_2021 | OWN_VALUES


def test_base_given_as_the_config_file_gives_nothing() -> None:
    """An evaluation at 224 px because base.yaml says so would overrule the weights."""
    flags = {"util.test_only": "True", "util.test_weight_file": "w.pth", "model.arch": "resnet18"}
    with_base, without = (read_config(file, flags) for file in (str(BASE_FILE), ""))
    assert with_base == without and with_base.data.image_size is None


def test_a_base_without_a_key_is_an_error_like_any_other(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relabel.config.load.BASE_FILE", Path("base.yaml").resolve())
    Path("base.yaml").write_text("\n".join(f"{key}:" for key in SCHEMA.sections if "." not in key))
    with pytest.raises(UserError, match=r"data.data_path \(.*base.yaml\): base.yaml must contain every key"):
        load_config("", {})


def test_every_key_is_explained_in_base_and_help_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    lines = BASE_FILE.read_text(encoding="utf-8").splitlines()
    keys = [line for line in lines if re.match(r" +[a-z_0-9]+: [^{\s]", line)]
    assert len(keys) == len(SCHEMA.types) and all(" # " in line for line in keys)
    with pytest.raises(SystemExit):
        fire_arguments(["--help"])
    screen = capsys.readouterr().out.splitlines()
    assert max(map(len, screen)) <= 80 and set(lines) <= set(screen)


def test_no_key_hides_behind_a_method_of_a_dict() -> None:
    names = {name for key in SCHEMA.types for name in key.split(".")}
    assert names.isdisjoint(dir(dict)) and names.isdisjoint(vars(Munch))


def test_a_config_file_of_2021_with_every_key_runs_unchanged(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    found = flatten(load(FILE_OF_2021, {}).toDict())
    assert {key: found[key] for key in KEYS_OF_2021} == KEYS_OF_2021 | CHANGED
    assert capsys.readouterr().err == ""


def test_run_dir_without_a_config_file(load: Load) -> None:
    assert load().util.run_dir == "runs/base"
    assert load(None, {"util.run_dir": "here"}).util.run_dir == "here"


@pytest.mark.parametrize("text", ["# nothing\n", "optim:\ndata:\n"])
def test_a_file_that_changes_nothing(load: Load, text: str) -> None:
    first, second = flatten(load().toDict()), flatten(load(text).toDict())
    assert {key for key in first if first[key] != second[key]} == {"util.run_dir"}


def test_every_mistake_is_reported_at_once_and_once(load: Load) -> None:
    flags = {"data.datapath": "DATA", "optim.epochs": "x", "data.relabel.path": "NOWHERE", "optim.accumulation": "5"}
    Path("my.yaml").write_text("optim:\n  start_epoch: 2\ndata:\n  lightning: 0.1\n")
    with pytest.raises(UserError) as caught:
        load_config("my.yaml", flags)
    subjects = [line[4:].split(" ")[0] for line in str(caught.value).splitlines() if line.startswith("  - ")]
    assert sorted(subjects) == [
        "--data.datapath",  # and not also: data.data_path is empty
        "data.lightning",
        "data.relabel.path",
        "optim.batch_size",
        "optim.epochs",
        "optim.start_epoch",
    ]
    assert str(caught.value).startswith("6 problems") and "python main.py --help" in str(caught.value)


def test_a_package_that_is_missing_is_named(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relabel.config.rules.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"util\.wandb = True .*: pip install wandb, or leave --util.wandb out"):
        load(None, {"util.wandb": "True"})


@pytest.mark.parametrize("labels", ["", "NOWHERE"])
def test_evaluation_needs_val_and_weights_only(load: Load, capsys: pytest.CaptureFixture[str], labels: str) -> None:
    flags = {"util.test_only": "True", "data.data_path": "ONLY_VAL", "data.relabel.path": labels}
    load("data: {relabel: {fill: -2.0}, cutmix: {beta: 1.0}}", {**flags, "util.test_weight_file": "W.pth"})
    assert capsys.readouterr().err == ""


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
        ({"optim.optimizer": "adamp", "optim.nesterov": "False"}, "optim.nesterov = False .*no effect"),
        ({"optim.warmup.epochs": "0", "optim.warmup.lr": "0.1"}, "optim.warmup.lr = 0.1 .*no effect"),
        ({"compute.gpu": "0", "compute.distributed.num_processes_per_node": "2"}, "compute.gpu = 0 means one process"),
        ({"util.test_weight_file": "W.pth"}, "util.test_weight_file = 'W.pth' .*no effect"),
        ({"eval.real": "no.json"}, "eval.real = 'no.json' .*no effect: util.test_only is False"),
        ({"data.cutmix.prob": "1", "data.cutmix.beta": "1", "optim.epochs": "5"}, "data.cutmix.prob = 1.0 .*no effect"),
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
    with pytest.raises(AttributeError, match="frozen"):
        config.optim.epochs = 3
    with pytest.raises(TypeError, match="frozen"):
        config.optim.update(epochs=3)
    with pytest.raises(AttributeError, match="no key 'epoch' in the config; did you mean epochs"):
        _ = config.optim.epoch
    assert config.optim.epochs == 100 and not hasattr(config, "optimizer")


@pytest.mark.parametrize("again", [copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))])
def test_copies_are_equal_and_frozen(load: Load, again: Callable[[Any], Any]) -> None:
    config = again(load())
    assert config == load() and isinstance(config, Munch)
    with pytest.raises(AttributeError, match="frozen"):
        config.optim.lr.init = 3.0


DIGITS = st.text("0123456789", min_size=1, max_size=5)
EXPONENTS = st.sampled_from(["", "e0", "E+2", "e-3", "e-05", "E1"])
WHOLE = st.builds("".join, st.tuples(st.sampled_from(["", "+", "00"]), DIGITS)).map(lambda text: (text, int(text)))
MANTISSAS = DIGITS | st.builds("{}.{}".format, DIGITS, DIGITS | st.just("")) | st.builds(".{}".format, DIGITS)
NUMBERS = st.builds("{}{}{}".format, st.sampled_from(["", "+"]), MANTISSAS, EXPONENTS).map(lambda t: (t, float(t)))
SHARES = NUMBERS.filter(lambda pair: 0 < pair[1] < 1)
TRUTHS = st.sampled_from([(text, text.lower() == "true") for text in ("true", "True", "TRUE", "false", "FALSE")])
NOTHING = st.sampled_from([(text, None) for text in ("null", "Null", "NULL", "none", "None")])
TEXTS = st.sampled_from(["yes", "1:30", "2024-01-02", "0x1f", "exp#3", "a=b", "a b", "größe"]).map(lambda t: (t, t))

# Keys that no rule ties to others, with values as they may be written and what each means.
FREE_KEYS: dict[str, st.SearchStrategy[tuple[str, Any]]] = {
    "model.arch": TEXTS,
    "data.crop_ratio": SHARES | NOTHING,
    "data.test_size": WHOLE.filter(lambda pair: pair[1] > 0) | NOTHING,
    "data.flip_prob": SHARES,
    "optim.bn.eps": SHARES | NOTHING,
    "optim.lr.init": NUMBERS,
    "optim.nesterov": TRUTHS,
    "optim.wd.base": NUMBERS,
    "util.print_freq": WHOLE.filter(lambda pair: pair[1] > 0),
    "util.run_dir": TEXTS,
    "util.tensorboard": TRUTHS,
}
CHANGES = st.sets(st.sampled_from(sorted(FREE_KEYS)), max_size=4).flatmap(
    lambda keys: st.fixed_dictionaries({key: FREE_KEYS[key] for key in sorted(keys)})
)
Changes = dict[str, tuple[str, Any]]


def as_file(changes: Changes, path: Path, hyphens: bool = False) -> Path:
    """The texts as they are, in sections in braces."""

    def braced(tree: dict[str, Any] | str) -> str:
        if isinstance(tree, str):
            return tree
        items = (f"{name.replace('_', '-') if hyphens else name}: {braced(part)}" for name, part in tree.items())
        return f"{{{', '.join(items)}}}"

    path.write_text(braced(nest({key: text for key, (text, _) in changes.items()})), encoding="utf-8")
    return path


def meant(changes: Changes) -> dict[str, Any]:
    return {key: value for key, (_, value) in changes.items()}


@given(CHANGES, st.booleans(), st.booleans())
def test_any_spelling_means_the_same_in_a_file_and_on_the_command_line(
    tmp_path_factory: pytest.TempPathFactory, changes: Changes, hyphens: bool, joined: bool
) -> None:
    in_file, problems = read_config_file(
        as_file(changes, tmp_path_factory.getbasetemp() / "any.yaml", hyphens), "", SCHEMA
    )
    words = []
    for key, (text, _) in changes.items():
        flag = f"--{key.replace('_', '-') if hyphens else key}"
        words += [f"{flag}={text}"] if joined else [flag, text]
    as_flags = dict(argument[2:].split("=", 1) for argument in fire_arguments(words))
    assert problems == [] and in_file.keys() == as_flags.keys() == changes.keys()
    for key, value in meant(changes).items():
        kind = SCHEMA.types[key]
        for found in (kind.check(in_file[key].value), kind.check(kind.read(as_flags[key]))):
            assert found == value and type(found) is type(value), key


@FEW
@given(CHANGES, CHANGES)
def test_merging_is_three_dicts_over_each_other(
    tmp_path_factory: pytest.TempPathFactory, in_file: Changes, in_flags: Changes
) -> None:
    data = tmp_path_factory.getbasetemp() / "merged"
    for split in ("train", "val"):
        (data / split).mkdir(parents=True, exist_ok=True)
    flags = {"data.data_path": str(data), "data.relabel.path": str(data)}
    path = as_file(in_file, data / "merged.yaml")
    found = flatten(load_config(str(path), flags | {key: text for key, (text, _) in in_flags.items()}).toDict())
    base = {key: setting.value for key, setting in read_config_file(BASE_FILE, "", SCHEMA)[0].items()}
    assert found == base | {"util.run_dir": "runs/merged"} | flags | meant(in_file) | meant(in_flags)


@given(st.dictionaries(st.sampled_from(list(SCHEMA.types)), st.integers(0, 2)))
def test_flat_and_nested_are_the_same_tree(flat: dict[str, int]) -> None:
    assert flatten(nest(flat)) == flat


@given(st.text() | st.sampled_from(["1e-3", "010", "null", "True", "~", "\x85", "a\nb", " #", "é"]))
def test_any_text_survives_yaml(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "text.yaml"
    path.write_text(to_yaml({"model": {"arch": text}}), encoding="utf-8", newline="")
    found, problems = read_config_file(path, "", SCHEMA)
    assert problems == []
    assert found["model.arch"].value == text
