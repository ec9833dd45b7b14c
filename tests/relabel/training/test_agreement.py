"""Label maps that teach no more than chance are refused by `check` and by training, each with a remedy that works."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from relabel import __main__ as tools
from relabel.label_map import LabelMap
from relabel.stores.pt_folder import write_label_map
from relabel.training.agreement import Agreement, sampled_agreement
from tests.conftest import CLASSES, Flags
from tests.memory_store import MemoryStore
from tests.relabel.training.test_run import start, undisturbed
from utils.errors import UserError
from utils.run_log import read_metrics

Logits = Callable[[np.ndarray], np.ndarray]  # of a classifier [K, h, w] -> what a map holds in their place


def maps_of(labels: np.ndarray, num_classes: int, right: float, k: int, peak: float = 8.0) -> list[LabelMap]:
    """Maps of 3 x 4 cells by a teacher that knows the class of this share of the images, and guesses the others."""
    rng = np.random.default_rng(0)
    found = []
    for label in labels.tolist():
        dense = rng.normal(size=(num_classes, 3, 4)).astype(np.float32)
        dense[label if rng.random() < right else rng.integers(num_classes)] += peak
        found.append(LabelMap.from_dense(dense, k))
    return found


@pytest.mark.parametrize(
    ("images", "num_classes", "right", "k"),
    [(12, 2, 1.0, 1), (12, 3, 0.8, 2), (100, 2, 0.8, 2), (300, 10, 0.6, 5), (200, 200, 0.5, 5), (300, 1000, 0.9, 5)],
)
def test_honest_maps_of_any_size_pass(images: int, num_classes: int, right: float, k: int) -> None:
    """Weak teachers, few images, few classes, one image per class, and the kind released in 2021."""
    labels = np.arange(images) * num_classes // images
    store = MemoryStore(maps_of(labels, num_classes, right, k, peak=12.0))
    found, problems = sampled_agreement(store, labels, [str(i) for i in range(num_classes)], 0.0, 1.0)
    assert problems == [] and found.images == min(images, 200)
    assert found.correct == pytest.approx(right * found.images, abs=0.15 * images)
    assert found.elsewhere and found.elsewhere.warning([str(i) for i in range(num_classes)], {}) == ""


@pytest.mark.parametrize(("images", "warns"), [(60, True), (15, False)])
def test_a_class_that_leads_in_the_backgrounds_of_other_folders_is_a_warning(images: int, warns: bool) -> None:
    labels = np.arange(images) % 3
    scores, classes = torch.full((images, 1, 3, 4), 9.0), torch.full((images, 1, 3, 4), 2)
    classes[:, 0, :, 1:] = torch.from_numpy(labels)[:, None, None]  # one column of four is background: class 2
    found = Agreement.of(scores, classes, labels, 3)
    assert found.problems(["ant", "bee", "cow"]) == [] and found.elsewhere
    assert (found.elsewhere.label, found.elsewhere.images) == (2, images * 2 // 3)
    assert (found.elsewhere.percent, found.elsewhere.others_percent) == (25, 0)
    texts = [found.elsewhere.warning(["ant", "bee", "cow"], summed) for summed in ({"cow": 9}, {})]
    assert ["cow is the top class in 25 %" in text for text in texts] == [warns] * 2
    assert ["--merge mean" in text for text in texts] == [warns, False]


def test_classes_that_the_data_lacks_do_not_count() -> None:
    """Half of the cells are of classes that the data lacks, id K = 2, with the larger logits."""
    scores, classes = torch.full((12, 2, 3, 4), 6.0), torch.full((12, 2, 3, 4), 2)
    labels = np.arange(12) % 2
    classes[:, 1, :, :2] = torch.from_numpy(labels)[:, None, None]
    scores[:, 0] = 20.0
    found = Agreement.of(scores, classes, labels, 2)
    assert found.problems(["ant", "bee"]) == [] and (found.correct, found.cells_below_fill_percent) == (12, 0)


@pytest.mark.parametrize(
    ("change", "labels", "message"),
    [
        (lambda s: s - 100.0, True, "100 % of the cells have no score above fill 0"),
        (lambda s: s * 1000.0, False, r"largest score of a cell is [0-9,]+ \(median\); expected about 5 to 30"),
        (lambda s: s.softmax(dim=1), False, r"as probabilities do; expected logits"),
        (lambda s: s * 0.0, False, r"100 % of the cells give all their classes the same score"),
        (lambda s: s * 0.0 + 12.0, True, r"100 % of the cells give all their classes the same score"),
        (lambda s: s / 4 - 0.5, False, r"[5-9]\d % of a target falls to classes that its map does not store"),
    ],
)
def test_scores_that_are_no_logits_are_problems_with_labels_or_without(
    change: Callable[[torch.Tensor], torch.Tensor], labels: bool, message: str
) -> None:
    own = np.arange(40) % 100
    scores, classes = LabelMap.stack(maps_of(own, 100, 1.0, 5))
    names = [str(i) for i in range(100)]
    assert Agreement.of(scores, classes, own, 100).problems(names) == []
    (problem,) = Agreement.of(change(scores), classes, own if labels else None, 100).problems(names)
    assert re.search(message, problem)


def test_a_doubtful_sample_is_looked_at_again() -> None:
    """54 % of two classes is no evidence among 200 images, and is among 3,000, as many as `check` would measure."""
    labels = np.repeat([0, 1], 1500)
    maps = maps_of(labels, 2, 0.08, 1)
    found, problems = sampled_agreement(MemoryStore(maps), labels, ["ant", "bee"], 0.0, 1.0)
    assert (found.images, problems) == (3000, [])
    (problem,) = sampled_agreement(MemoryStore(maps_of(labels, 2, 0.0, 1)), labels, ["ant", "bee"], 0.0, 1.0)[1]
    assert re.search(r"folder's for (4|5)\d.\d % of 3,000 images \(chance: 50 %\); expected clearly more", problem)


# ---- as typed


def write_maps(folder: Path, change: Logits, k: int) -> Path:
    """Maps of the photos' training images: what becomes of right logits."""
    rng = np.random.default_rng(1)
    for label, name in enumerate(CLASSES):
        for i in range(10):
            dense = rng.normal(size=(3, 3, 4)).astype(np.float32)
            dense[label] += 5
            write_label_map(folder, f"{name}/{name}.{i:02d}", LabelMap.from_dense(change(dense), k))
    return folder


def log_softmax(dense: np.ndarray) -> np.ndarray:
    return np.asarray(torch.from_numpy(dense).log_softmax(0))


def checked(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str]:
    """Exit status of `python -m relabel` with these words, and its output as one line."""
    capsys.readouterr()
    status: object = 0
    try:
        tools.main([str(word) for word in argv])
    except SystemExit as end:
        status = end.code
    assert isinstance(status, int)
    return status, " ".join(capsys.readouterr().out.split())


def refused(flags: Flags) -> str:
    with pytest.raises(UserError) as error:
        start(flags)
    assert not flags["util.run_dir"].exists()
    return str(error.value)


def typed(message: str, program: str) -> list[str]:
    """The words after `python -m relabel` of the command in a message."""
    found = re.search(rf"{program} (.*)", message.replace("\\\n", ""))
    assert found
    return shlex.split(found[1])


def test_log_probabilities_are_refused_until_the_fill_that_check_names(
    flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags |= {"data.relabel.path": write_maps(tmp_path / "log p", log_softmax, 1), "optim.epochs": 1}
    message = refused(flags)
    assert "as with log-probabilities" in message and "folder's for 0.0 % of 30 images (chance: 33.3 %)" in message
    status, out = checked(capsys, *typed(message, "python -m relabel"))
    wanted = re.search(r"Check again with --fill (\S+), and train with --data.relabel.fill (\S+)\.", out)
    assert status == 1 and wanted and wanted[1] == wanted[2]
    status, out = checked(capsys, *typed(message, "python -m relabel"), "--temperature=1", f"--fill={wanted[1]}")
    assert status == 2  # a flag given twice
    images = ["--images", flags["data.data_path"] / "train"]
    status, out = checked(capsys, "check", flags["data.relabel.path"], *images, "--fill", wanted[1])
    assert status == 0 and "No problems found" in out
    start({**flags, "data.relabel.fill": wanted[2]})
    assert "folder's for 100.0 % of 30 images (chance: 33.3 %)" in capsys.readouterr().out


def test_probabilities_are_refused_unless_insisted_upon(
    flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maps = write_maps(tmp_path / "p", lambda dense: np.exp(log_softmax(dense)), 3)
    flags |= {"data.relabel.path": maps, "optim.epochs": 1}
    message = refused(flags)
    assert "as probabilities do; expected logits" in message
    assert checked(capsys, *typed(message, "python -m relabel"))[0] == 1
    assert message.endswith("--data.relabel.insist True")
    start({**flags, "data.relabel.insist": True})
    assert "data.relabel.insist is True: training on them" in capsys.readouterr().err
    start(flags)  # finished; only a new run is checked
    assert "is finished" in capsys.readouterr().out


def test_a_wrong_class_order_is_named_and_can_be_put_right(
    flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags["data.relabel.path"] = write_maps(tmp_path / "maps", lambda dense: dense[[2, 0, 1]], 2)
    assert "the classes taken for ant, bee, cow are cow, ant, bee" in refused(flags)
    images = ["--images", flags["data.data_path"] / "train"]
    status, out = checked(capsys, "check", tmp_path / "maps", *images)
    order = re.search(r"the classes taken for ant, bee, cow are ([a-z, ]+)\.", out)
    assert status == 1 and order and "Problems: 1" in out
    (tmp_path / "order.txt").write_text(order[1].replace(", ", "\n"))
    checked(capsys, "pack", tmp_path / "maps", tmp_path / "packed", "--classes", tmp_path / "order.txt")
    assert checked(capsys, "check", tmp_path / "packed", *images)[0] == 0


def test_maps_of_random_weights_fail_and_maps_without_labels_are_said_to_be_exempt(
    flags: Flags, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, maps = photos / "train", tmp_path / "random"
    network = ["--arch", "digit_net", "--weights", "random", "--size", "24x32", "--num_workers", "0", "--top_k", "2"]
    checked(capsys, "annotate", train, maps, *network)
    assert checked(capsys, "check", maps, "--images", train)[0] == 1
    _, out = checked(capsys, "check", maps)
    assert "were not compared with labels, because --images was not given" in out
    assert "are not fit for training" in refused({**flags, "data.relabel.path": maps})


def test_the_targets_have_an_entropy_below_the_loss_and_an_agreement_of_their_own(flags: Flags) -> None:
    """Cross-entropy is at least the entropy of the target; labels of folders have none."""
    for use in (True, False):
        events = read_metrics(undisturbed(flags if use else {**flags, "data.relabel.use": False}))
        for event in events:
            assert ("top1_percent" in event) == (event["event"] == "validation")
            if event["event"] == "train":
                assert (0 < event["target_entropy_nats"] < event["loss"]) == use
                assert 0 <= event["target_agreement_percent"] <= 100
