"""What a run was trained with, its checkpoint records, and nothing that uses the checkpoint needs it repeated."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from pytest import CaptureFixture

from models.recorded import DATA_CONFIG
from relabel import __main__ as tools
from relabel.cli.run import run
from relabel.config.load import fire_arguments, load_config
from relabel.config.rules import RESUME
from tests.conftest import Flags
from tests.relabel.training.test_run import assert_same_weights, preempt, start, weights
from utils.checkpoint import LAST, load_checkpoint, save_checkpoint
from utils.config.dotted_keys import flatten, nest
from utils.config.yaml_file import to_yaml
from utils.run_log import CONFIG, read_metrics

OWN: Flags = {
    "data.test_size": 40,
    "data.crop_ratio": 0.8,
    "data.mean": "0.5,0.5,0.5",
    "data.std": "0.4,0.5,0.6",
    "data.interpolation": "bicubic",
    "optim.bn.eps": 1e-3,
    "optim.epochs": 1,
    "optim.warmup.epochs": 0,
    "optim.ema.decay": 0.5,
}
VALUES = "40 x 40 pixels, crop ratio 0.8, bicubic, mean 0.5 0.5 0.5, std 0.4 0.5 0.6, batch norm eps 0.001"
RECORDED = f"{VALUES} (recorded in {LAST})"


@pytest.fixture
def trained(flags: Flags) -> Path:
    """The last checkpoint of a run with an input of its own."""
    start(flags | OWN)
    path: Path = flags["util.run_dir"] / LAST
    return path


def evaluate(checkpoint: Path, out: Path, data: Path, **flags: Any) -> dict[str, float]:
    """Name of the weights -> top-1, by a command line without a config file."""
    given = {"util.test_only": True, "util.test_weight_file": checkpoint, "util.run_dir": out, "data.data_path": data}
    given |= {"compute.num_workers": 0, "compute.distributed.use": False, "compute.opt_level": "O0"} | flags
    words = fire_arguments([word for key, value in given.items() for word in (f"--{key}", str(value))])
    run(load_config("", dict(word.removeprefix("--").split("=", 1) for word in words)))
    results = json.loads((out / f"evaluation-{checkpoint.stem}.json").read_text())["results"]
    return {r["weights"]: r["value"] for r in results if (r["set"], r["metric"]) == ("val", "nll_nats")}


def test_a_checkpoint_is_tested_annotates_scores_and_exports_as_it_was_trained(
    trained: Path, photos: Path, tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    record = load_checkpoint(trained)[DATA_CONFIG]
    assert (record["size"], record["train_size"], record["bn_eps"]) == ([40, 40], 16, 1e-3)
    found = evaluate(trained, tmp_path / "evaluated", photos)
    of_run = {e["weights"]: e["loss"] for e in read_metrics(trained.parent) if e["event"] == "validation"}
    assert found == pytest.approx(of_run, rel=1e-5) and set(found) == {"model", "ema"}
    assert f"input: {RECORDED}\n" in capsys.readouterr().out

    train, maps = photos / "train", tmp_path / "maps"
    tools.main(["annotate", str(train), str(maps), "--weights", str(trained), "--num_workers", "0"])
    assert f"input: {RECORDED}\n" in capsys.readouterr().out
    made_by = json.loads((maps / "manifest.json").read_text())["made_by"]
    assert (made_by["input_size"], made_by["mean"], made_by["interpolation"]) == ([40, 40], [0.5] * 3, "bicubic")

    with suppress(SystemExit):  # the maps of such a teacher have problems
        tools.main(["check", str(maps), "--images", str(train), "--classifier_weights", str(trained)])
    assert f"classifier digit_net ({trained}, averaged weights (EMA)): {RECORDED}" in capsys.readouterr().out


def test_a_flag_that_contradicts_the_record_is_obeyed_and_said(
    trained: Path, photos: Path, tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    own = evaluate(trained, tmp_path / "own", photos)
    capsys.readouterr()
    flags = {"data.mean": "0.4,0.4,0.4", "data.crop_ratio": "null", "optim.bn.eps": 1e-5}
    other = evaluate(trained, tmp_path / "other", photos, **flags)
    assert all(abs(own[name] - other[name]) > 1e-4 for name in own)
    out = capsys.readouterr().out
    assert (
        "input: the whole image squashed instead of crop ratio 0.8, mean 0.4 0.4 0.4 instead of mean 0.5 0.5 0.5, "
        "batch norm eps 1e-05 instead of batch norm eps 0.001 (given); 40 x 40 pixels, bicubic, std 0.4 0.5 0.6 ("
    ) in out


def test_a_training_size_is_no_size_of_an_evaluation_and_that_is_said(
    trained: Path, photos: Path, tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    evaluate(trained, tmp_path / "out", photos, **{"data.image_size": 24})
    assert f"{RECORDED}; data.image_size 24 has no effect here, --data.test_size 24 has\n" in capsys.readouterr().out
    evaluate(trained, tmp_path / "out", photos, **{"data.image_size": 24, "data.test_size": 24})
    assert "input: 24 x 24 pixels instead of 40 x 40 pixels (given)" in capsys.readouterr().out


def test_fine_tuning_starts_with_the_recorded_input(
    trained: Path, flags: Flags, tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    capsys.readouterr()
    more = {"model.weights": trained, "util.run_dir": tmp_path / "tuned", "optim.epochs": 1, "optim.warmup.epochs": 0}
    start(flags | more)
    out = capsys.readouterr().out
    assert f"starting from {LAST} (EMA), classification head included" in out
    assert (
        "input: 16 x 16 pixels instead of 40 x 40 pixels (given); crop ratio 0.8, bicubic, mean 0.5 0.5 0.5, std "
        f"0.4 0.5 0.6, batch norm eps 0.001 (recorded in {LAST})\n"
    ) in out
    record = load_checkpoint(tmp_path / "tuned" / LAST)[DATA_CONFIG]
    assert (record["size"], record["mean"], record["bn_eps"]) == ([16, 16], [0.5] * 3, 1e-3)
    del flags["data.image_size"]
    more["util.run_dir"] = tmp_path / "of_their_size"
    start(flags | more)
    assert f"input: training crops of 16 x 16 pixels; {RECORDED}\n" in capsys.readouterr().out
    start(flags | more)
    start(flags | more | {"util.run_dir": tmp_path / "tuned", "data.image_size": 16})
    assert capsys.readouterr().out.count("is finished") == 2


def test_a_run_of_an_earlier_version_keeps_what_its_config_says(
    flags: Flags, photos: Path, tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    """Its checkpoints record nothing of it: their only hash is of all settings, the network's own eps among them."""
    flags |= {"model.arch": "mobilenet_v3_small", "data.image_size": 32, "data.test_size": 40}
    flags |= {"data.crop_ratio": "null", "optim.bn.eps": "null", "optim.epochs": 1, "optim.warmup.epochs": 0}
    folder: Path = flags["util.run_dir"]
    start({**flags, "util.run_dir": tmp_path / "undisturbed"})
    preempt(flags, 3)
    settings = flatten(yaml.safe_load((folder / CONFIG).read_text()))
    settings = {key: value for key, value in settings.items() if key not in RESUME.unhashed}
    (folder / CONFIG).write_text(to_yaml(nest(settings)))
    unhashed = RESUME.free | RESUME.warned | {RESUME.seed}
    hashed = {key: value for key, value in settings.items() if key not in unhashed}
    hashed = {key: value for key, value in hashed.items() if RESUME.before.get(key, ...) != value}
    state = load_checkpoint(folder / LAST)
    state["config_sha256"] = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()
    save_checkpoint({key: state[key] for key in state if key not in (DATA_CONFIG, "recipe_sha256")}, folder / LAST)
    capsys.readouterr()
    evaluate(folder / LAST, tmp_path / "out", photos)
    out = capsys.readouterr().out
    assert f"40 x 40 pixels, the whole image squashed (from config.yaml beside {LAST})" in out
    assert "bilinear, mean 0.485 0.456 0.406, std 0.229 0.224 0.225 (as in 2021" in out
    start(flags)
    assert_same_weights(weights(tmp_path / "undisturbed"), weights(folder))
    record = load_checkpoint(folder / LAST)[DATA_CONFIG]
    assert (record["size"], record["crop_ratio"], record["bn_eps"]) == ([40, 40], None, None)


@pytest.mark.parametrize("text", ["[0.5, 0.4, 0.3]", "0.5,0.4,0.3"])
def test_a_run_continues_with_the_mean_of_its_config_file(flags: Flags, tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text(f"data:\n  mean: {text}\n  interpolation: bicubic\n")

    def load(folder: Path) -> Any:
        words = {key: str(value) for key, value in (flags | {"util.run_dir": folder}).items()}
        return load_config(str(tmp_path / "recipe.yaml"), words)

    run(load(tmp_path / "undisturbed"))
    config = load(tmp_path / "run")
    assert list(config.data.mean) == [0.5, 0.4, 0.3]
    preempt(flags | {"data.mean": "0.5,0.4,0.3", "data.interpolation": "bicubic"}, 7)
    run(config)
    assert_same_weights(weights(tmp_path / "undisturbed"), weights(tmp_path / "run"))
    assert load_checkpoint(tmp_path / "run" / LAST)[DATA_CONFIG]["mean"] == [0.5, 0.4, 0.3]
    repeated = load_config(str(tmp_path / "run" / "config.yaml"), {})
    assert list(repeated.data.mean) == [0.5, 0.4, 0.3] and repeated.data.std is None
