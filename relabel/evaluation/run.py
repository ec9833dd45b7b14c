"""`--util.test_only True`: all weights of a checkpoint on val/ and every published set that was asked for.

Every file and folder is read before the first image is classified; then each image set is read once.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from models.build import infer_num_classes
from relabel.config.rules import RESUME
from relabel.data.class_names import WNID, class_names_of_imagenet
from relabel.data.decode import resolve_decoder
from relabel.data.images import ImageList
from relabel.evaluation.imagenet_labels import (
    IMAGENET_CLASSES,
    VALIDATION_IMAGES,
    ValidationImages,
    imagenet_positions,
    read_multi_labels,
    read_real,
)
from relabel.evaluation.imagenet_sets import (
    A_IMAGES,
    R_IMAGES,
    ImageSet,
    SetsAndNotes,
    accuracy_and_calibration,
    count_note,
    describe,
    imagenet_c_sets,
    imagenet_v2_sets,
    mean_corruption_error,
    subset_set,
)
from relabel.evaluation.predictions import NO_CLASS, Predictions, predict_classes, write_predictions
from relabel.evaluation.results import VAL, Result, print_results
from relabel.evaluation.true_labels import TrueLabels, read_true_labels
from relabel.training.build import (
    build_model,
    check_image_sizes,
    list_split,
    load_from,
    set_up_device,
    test_loader,
    test_view,
)
from relabel.training.failures import failures_told
from utils.checkpoint import load_checkpoint, named_classes, split_weights
from utils.config.frozen_munch import FrozenMunch
from utils.errors import UserError, with_advice
from utils.files import read_json, write_json
from utils.precision import Precision
from utils.processes.distributed import Process, from_main
from utils.run_folder import make_run_folder
from utils.run_log import environment

IMAGENET_KEYS = ("real", "multilabel", "imagenet_v2", "imagenet_a", "imagenet_r", "imagenet_c")


@dataclass(slots=True, eq=False)
class Evaluation:
    """What is asked for.

    Fields:
        sets: of images; val first, where there is one.
        notes: for the person: what is missing, what is left out. They grow while images are read.
        true_labels: own labels of val; None without.
    """

    sets: list[ImageSet]
    notes: list[str]
    true_labels: TrueLabels | None = None


def test(process: Process, config: FrozenMunch) -> None:
    """One process of an evaluation: print a table, write evaluation-<weights>.json and, where wanted, predictions."""
    set_up_device(process.device)
    path, folder = Path(config.util.test_weight_file), Path(config.util.run_dir)
    content = load_checkpoint(path)
    weights = split_weights(content, path)
    images = list_split(config, "val") if config.data.data_path else None
    class_names = named_classes(content, path) or _unnamed_classes(config, weights["model"], images)
    evaluation = plan_evaluation(config, images, class_names)
    precision = Precision(config.compute.opt_level, process.device)
    models: dict[str, nn.Module] = {}
    for name, state_dict in weights.items():
        models[name] = build_model(config, len(class_names), precision)
        load_from(path, models[name], state_dict, content.get("arch"))
    check_image_sizes(config, models["model"], len(class_names), precision)
    process.share(config.util.val_batch_size, "util.val_batch_size")
    from_main(lambda: open_folder(folder, path))  # before the work, in case it cannot be written
    with failures_told(process, note=lambda _: None, told_before=lambda error: "by peer" in str(error)):
        results = evaluate_sets(config, evaluation, models, precision, process)
    if process.is_main:
        tell(config, images, results, evaluation, precision)


def open_folder(folder: Path, weights: Path) -> None:
    """Make the run folder. UserError where it cannot be written, or holds what another file of this name achieved."""
    report = _report_path(folder, weights)
    try:
        before = Path(read_json(report, "expected an evaluation")["weights"]).resolve()
    except (UserError, KeyError, TypeError, ValueError, OSError):  # none that says what it is of
        before = weights.resolve()
    if before != weights.resolve():
        raise UserError(
            f"{report} holds the evaluation of {before}; expected none, or one of {weights}, which would replace it.\n"
            f"  Set another --util.run_dir."
        )
    make_run_folder(folder, RESUME)


def _report_path(folder: Path, weights: Path) -> Path:
    return folder / f"evaluation-{weights.stem}.json"


def _unnamed_classes(config: FrozenMunch, state_dict: dict[str, Tensor], images: ImageList | None) -> list[str]:
    """The classes of a checkpoint that does not name them: ImageNet's where it has 1000, else val's folders."""
    path = Path(config.util.test_weight_file)
    count = infer_num_classes(config.model.arch, state_dict)
    if count == IMAGENET_CLASSES and (images is None or all(map(WNID.fullmatch, images.class_names))):
        return class_names_of_imagenet()
    if images is None:
        raise UserError(
            f"{path} tells {count:,} classes apart and does not name them; expected ImageNet's {IMAGENET_CLASSES}.\n"
            f"  Give another --util.test_weight_file."
        )
    check_class_count(images, count, path)
    return images.class_names


def check_class_count(images: ImageList, num_classes: int, path: Path) -> None:
    """A checkpoint that does not name its classes fits only a folder of as many classes."""
    if len(images.class_names) != num_classes:
        raise UserError(
            f"{images.root} has {len(images.class_names)} class folders, but {path} tells {num_classes} classes apart "
            f"and does not name them.\n  Set --data.data_path to the data it was trained for."
        )


def plan_evaluation(config: FrozenMunch, images: ImageList | None, class_names: list[str]) -> Evaluation:
    """Read every file and list every folder that the config names.

    Args:
        config: data, eval and util.
        images: of val/; None without.
        class_names: K texts; the checkpoint's.

    Raises:
        UserError: a file or a folder is not what it should be, or not for these classes.
    """
    path, wanted = Path(config.util.test_weight_file), config.eval
    asked = [f"eval.{name}" for name in IMAGENET_KEYS if wanted[name]]
    positions = imagenet_positions(class_names, path, asked[0]) if asked else np.empty(0, dtype=np.int64)
    view, whose = test_view(config), str(path)
    evaluation = Evaluation([], [])
    found: list[SetsAndNotes] = []
    if images is not None:
        with with_advice("Check --data.data_path."):
            images = images.with_classes_of(class_names, whose)
        evaluation = _plan_validation(config, images, positions)
    if wanted.imagenet_v2:
        found.append(imagenet_v2_sets(Path(wanted.imagenet_v2), class_names, positions, view))
    for name, expected in (("imagenet_a", A_IMAGES), ("imagenet_r", R_IMAGES)):
        if wanted[name]:
            found.append(subset_set(name, Path(wanted[name]), class_names, whose, expected, view))
    if wanted.imagenet_c:
        found.append(imagenet_c_sets(Path(wanted.imagenet_c), class_names, whose, view.size))
    for sets, notes in found:
        evaluation.sets += sets
        evaluation.notes += notes
    return evaluation


def _plan_validation(config: FrozenMunch, images: ImageList, positions: np.ndarray) -> Evaluation:
    """What is asked about val/: its folders' labels, and published and own labels."""
    wanted, view, names = config.eval, test_view(config), images.class_names
    measures, notes, true_labels = accuracy_and_calibration(VAL, "the folder's class"), [], None
    if len(names) == IMAGENET_CLASSES and all(map(WNID.fullmatch, names)):
        notes += count_note(VAL, len(images), VALIDATION_IMAGES)
    if wanted.real or wanted.multilabel:
        numbered = ValidationImages(images)
        notes += numbered.notes
    if wanted.real:
        real, more = read_real(Path(wanted.real), images, numbered, positions)
        measures.append(real.results)
        notes += more
    if wanted.multilabel:
        multi_labels, more = read_multi_labels(Path(wanted.multilabel), images, numbered, positions)
        measures.append(multi_labels.results)
        notes += more
    if wanted.labels:
        true_labels, more = read_true_labels(Path(wanted.labels), images)
        measures.append(true_labels.results)
        notes += more
    return Evaluation([ImageSet(VAL, images, view, measures)], notes, true_labels)


def evaluate_sets(
    config: FrozenMunch, evaluation: Evaluation, models: dict[str, nn.Module], precision: Precision, process: Process
) -> dict[str, list[Result]]:
    """Weights -> Results, on the main process; the others help. The predictions' files are written on the way."""
    results: dict[str, list[Result]] = {name: [] for name in models}
    for image_set in evaluation.sets:
        true_labels = evaluation.true_labels if image_set.name == VAL else None
        found = predict_classes(
            models,
            image_set.images,
            test_loader(config, image_set.images, process, image_set.view)(),
            precision,
            process,
            title=image_set.name,
            among=image_set.among,
            keep_probabilities=true_labels is not None,
        )
        for name, predictions in found.items() if process.is_main else ():
            for measure in image_set.measures:
                results[name] += measure(predictions)
            evaluation.notes += _bad_logits_note(image_set.name, name, predictions)
            if config.eval.predictions:
                in_set = None if true_labels is None else true_labels.in_set(predictions)
                write_predictions(_predictions_path(config, name, image_set.name), predictions, in_set)
    return {name: mine + mean_corruption_error(mine) for name, mine in results.items()}


def _bad_logits_note(image_set: str, weights: str, predictions: Predictions) -> list[str]:
    bad = int((predictions.top1 == NO_CLASS).sum())
    note = f"{image_set}: logits of {bad:,} images are not all finite ({weights}); these count as wrong"
    return [note] if bad else []


def _predictions_path(config: FrozenMunch, weights: str, image_set: str) -> Path:
    """predictions-<weights>[-ema]-<set>.csv in the run folder."""
    stem = Path(config.util.test_weight_file).stem + ("" if weights == "model" else f"-{weights}")
    return Path(config.util.run_dir) / f"predictions-{stem}-{image_set.replace('/', '-')}.csv"


def tell(
    config: FrozenMunch,
    images: ImageList | None,
    results: dict[str, list[Result]],
    evaluation: Evaluation,
    precision: Precision,
) -> None:
    """The table on the screen, and the same as JSON in the run folder."""
    path, folder = Path(config.util.test_weight_file), Path(config.util.run_dir)
    views = {image_set.name: describe(image_set.view) for image_set in evaluation.sets}
    print_results(results, str(path))
    print("".join(f"\n{view}: {_sets_seen_so(views, view)}" for view in dict.fromkeys(views.values())))
    print("".join(f"\nnote: {note}" for note in evaluation.notes))
    report = {
        "weights": str(path),
        "arch": config.model.arch,
        "data": None if images is None else str(images.root),
        "eval": config.eval.toDict(),
        "views": views,
        "precision": precision.name,
        "decoder": resolve_decoder(config.data.decoder),
        "environment": environment(),
        "results": [{"weights": name, **result.as_record()} for name, mine in results.items() for result in mine],
        "notes": evaluation.notes,
    }
    write_json(_report_path(folder, path), report)
    print(_report_path(folder, path), flush=True)


def _sets_seen_so(views: dict[str, str], view: str) -> str:
    """The names of the image sets with that view, a family of them once."""
    return ", ".join(dict.fromkeys(name.partition("/")[0] for name, mine in views.items() if mine == view))
