"""`--util.test_only True`: evaluate all weights of a checkpoint on val/ and every image set that is given.

All label files and folders are read before the first image is classified; then each image set is read once.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from models.classifier import Weights, open_weights
from models.data_config import DataConfig
from models.merged_classes import MergedClasses
from relabel.config.rules import PUBLISHED, has_images
from relabel.data.class_names import WNID, ClassOrder, class_order
from relabel.data.dataset import CenterCrop
from relabel.data.decode import resolve_decoder
from relabel.data.images import ImageList
from relabel.evaluation import imagenet_labels, imagenet_sets
from relabel.evaluation.class_order import absent_classes, chance_notes, unknown_classes
from relabel.evaluation.class_results import ClassResults, Figures, print_worst_classes, write_class_results
from relabel.evaluation.imagenet_labels import IMAGENET_CLASSES
from relabel.evaluation.imagenet_sets import ImageSet, imagenet_subset
from relabel.evaluation.predictions import ORIGINS, origins, write_predictions
from relabel.evaluation.results import VAL, Result, print_results
from relabel.evaluation.true_labels import read_true_labels
from relabel.training.build import eval_loader, list_split, set_up_device
from relabel.training.network import CLASSES_FLAG, center_crop, check_image_sizes, evaluation_input
from relabel.training.run import ANOTHER_FOLDER, errors_reported_once
from relabel.training.validation import NO_CLASS, Predictions, predict_classes
from utils.config.frozen_munch import FrozenMunch
from utils.errors import UserError, out_of_memory_reported, with_advice
from utils.files import make_writable, read_json, write_json
from utils.precision import Precision
from utils.processes.distributed import Process, from_main
from utils.progress import print_lines
from utils.run_log import environment

OTHER_FOLDERS = (
    f"If these are classes of the weights under other names, give {CLASSES_FLAG} FILE, with a line NAME<TAB>FOLDER for "
    "each class of the weights that has a folder of another name."
)
IMAGENET_KEYS = ("real", "multilabel", "imagenet_v2", "imagenet_a", "imagenet_r", "imagenet_c")


def test(process: Process, config: FrozenMunch, figures: Figures) -> None:
    """Evaluate on one process: print tables; write evaluation-<weights>.json, results by class and predictions.

    Args:
        process: this process.
        config: of the evaluation.
        figures: the functions that draw.
    """
    set_up_device(process.device, config.data.decoder)
    path, folder = Path(config.util.test_weight_file), Path(config.util.run_dir)
    images = list_split(config, "val") if has_images(config, "val") else None
    with with_advice("Correct --model.arch or --util.test_weight_file."):
        weights = open_weights(config.model.arch, str(path))
    order = class_order(weights, config.eval.classes or None, images.class_names if images else None, CLASSES_FLAG)
    if order.names is None:
        raise UserError(unknown_classes(weights, images))
    data_config, class_names = evaluation_input(config, weights), order.names
    sets = from_main(lambda: plan_evaluation(config, images, class_names, center_crop(data_config)))
    precision = Precision(config.compute.opt_level, process.device)
    memory_advice = f"util.val_batch_size is {config.util.val_batch_size}: lower --util.val_batch_size."
    with out_of_memory_reported(memory_advice):
        models = {name: _network(weights, name, order, data_config, precision) for name in weights.state_dicts}
    process.share(config.util.val_batch_size, "util.val_batch_size")
    from_main(lambda: open_folder(folder, config))  # now, because it may turn out not to be writable
    if process.is_main:
        print_lines(f"{weights}, {weights.num_classes:,} classes: {order.source}\ninput: {data_config.source}")
    with errors_reported_once(process, lambda _: None, lambda error: "by peer" in str(error), memory_advice):
        results, of_val = evaluate_sets(config, sets, models, precision, process, data_config, order)
    if process.is_main:
        report(config, weights.arch, sets, results, precision, data_config, order)
        report_classes(config, of_val, weights, figures)
        print_lines(f"all of this as JSON: {_report_path(config)}")


def _network(
    weights: Weights, name: str, order: ClassOrder, data_config: DataConfig, precision: Precision
) -> nn.Module:
    """Build one of the networks of a checkpoint on its device, with its classes merged."""
    model = weights.build(name, data_config, "--model.arch", "--data.test_size").eval()
    check_image_sizes(weights.arch, model, {data_config.side})
    if order.groups is not None:
        model = MergedClasses(model, order.groups)
    return model.to(precision.device).to(memory_format=torch.channels_last)


def open_folder(folder: Path, config: FrozenMunch) -> None:
    """Create the run folder.

    Raises:
        UserError: it cannot be written, or contains the evaluation of another checkpoint with the same file name.
    """
    path, weights = _report_path(config), Path(config.util.test_weight_file)
    try:
        evaluated = Path(read_json(path, "expected an evaluation")["weights"]).resolve()
    except (UserError, KeyError, TypeError, ValueError, OSError):  # no evaluation, or one that lacks this entry
        evaluated = weights.resolve()
    if evaluated != weights.resolve():
        raise UserError(
            f"{path} is the evaluation of {evaluated}; that of {weights} would replace it.\n"
            "  Set another --util.run_dir."
        )
    make_writable(folder, "the run folder", ANOTHER_FOLDER)


def _stem(config: FrozenMunch) -> str:
    """Return the name of the weights in file names; published ones are told apart by their network."""
    given = config.util.test_weight_file
    return f"{given}-{config.model.arch.replace('/', '-')}" if given in PUBLISHED else Path(given).stem


def _report_path(config: FrozenMunch) -> Path:
    return Path(config.util.run_dir) / f"evaluation-{_stem(config)}.json"


def plan_evaluation(
    config: FrozenMunch, images: ImageList | None, class_names: list[str], transform: CenterCrop
) -> list[ImageSet]:
    """Read every label file and list every image set given in the config.

    Args:
        config: data, eval and util.
        images: of val/, if there is one.
        class_names: K texts; the checkpoint's.
        transform: of every image set but ImageNet-C.

    Returns:
        the image sets, val/ first.

    Raises:
        UserError: a file or folder is not of the expected form, or is for other classes; or there are no images.
    """
    checkpoint, wanted = config.util.test_weight_file, config.eval
    asked = [f"eval.{key}" for key in IMAGENET_KEYS if wanted[key]]
    positions = (
        imagenet_labels.imagenet_positions(class_names, checkpoint, asked[0]) if asked else np.empty(0, np.int64)
    )
    readers: dict[str, Callable[[Path], list[ImageSet]]] = {
        "imagenet_v2": lambda root: imagenet_sets.imagenet_v2_sets(root, class_names, positions, transform),
        "imagenet_a": lambda root: [imagenet_subset("imagenet_a", root, class_names, checkpoint, transform)],
        "imagenet_r": lambda root: [imagenet_subset("imagenet_r", root, class_names, checkpoint, transform)],
        "imagenet_c": lambda root: imagenet_sets.imagenet_c_sets(root, class_names, checkpoint, transform),
    }
    sets: list[ImageSet] = []
    if images is not None:
        with with_advice(f"Check --data.data_path. {OTHER_FOLDERS}"):
            images = images.with_classes_of(class_names, checkpoint)
        sets.append(_validation_set(config, images, positions, transform))
    for key, read in readers.items():
        if wanted[key]:
            with with_advice(f"Check --eval.{key}."):
                sets += read(Path(wanted[key]))
    if not sets:
        raise UserError("nothing to evaluate: found no images; expected those of val/ or another set. Give --data.val")
    return sets


def _validation_set(config: FrozenMunch, images: ImageList, positions: np.ndarray, transform: CenterCrop) -> ImageSet:
    """Make the set of the images of val/, evaluated by their folders, by published labels and by own labels."""
    wanted, names = config.eval, images.class_names
    metrics, notes, true_labels = imagenet_sets.accuracy_and_calibration(VAL, "label: class folder"), [], None
    notes += absent_classes(VAL, images)
    if len(names) == IMAGENET_CLASSES and all(map(WNID.fullmatch, names)):
        notes += imagenet_sets.count_note(VAL, len(images))
    if wanted.real or wanted.multilabel:
        numbers, more = imagenet_labels.image_numbers(images)
        notes += more
    if wanted.real:
        truth, more = imagenet_labels.read_real(Path(wanted.real), images, numbers, positions)
        metrics.append(partial(imagenet_labels.real_results, truth))
        notes += more
    if wanted.multilabel:
        labels, more = imagenet_labels.read_multi_labels(Path(wanted.multilabel), images, numbers, positions)
        metrics.append(labels.results)
        notes += more
    if wanted.labels:
        true_labels, more = read_true_labels(Path(wanted.labels), images)
        metrics.append(true_labels.results)
        notes += more
    return ImageSet(VAL, images, transform, metrics, true_labels=true_labels, notes=notes)


def evaluate_sets(
    config: FrozenMunch,
    sets: list[ImageSet],
    models: dict[str, nn.Module],
    precision: Precision,
    process: Process,
    data_config: DataConfig,
    order: ClassOrder,
) -> tuple[dict[str, list[Result]], dict[str, Predictions]]:
    """Evaluate all weights on each set, and write their predictions if asked for; on val/, look for a likelier order.

    Returns:
        On the main process: name of the weights -> results; and their predictions for val/, if there is one.
    """
    results: dict[str, list[Result]] = {name: [] for name in models}
    of_val: dict[str, Predictions] = {}
    for image_set in sets:
        true_labels = image_set.true_labels
        found = predict_classes(
            models,
            image_set.images,
            eval_loader(config, image_set.images, process, image_set.transform)(),
            precision,
            process,
            data_config,
            title=image_set.name,
            among=image_set.among,
            keep_probabilities=true_labels is not None,
        )
        for name, predictions in found.items() if process.is_main else ():
            for metric in image_set.metrics:
                results[name] += metric(predictions)
            if bad := int((predictions.top1 == NO_CLASS).sum()):
                note = f"images with logits that are not finite ({name}), which count as wrong: {bad:,}"
                image_set.notes.append(f"{image_set.name}: {note}")
            if image_set.name == VAL:
                of_val[name] = replace(predictions, probabilities=None)  # which can be gigabytes
                title = VAL if len(models) == 1 else f"{VAL} ({name})"
                image_set.notes.extend(
                    chance_notes(title, predictions, order, _path(config, "likely-classes", ".txt", name))
                )
            if config.eval.predictions:
                in_set = None if true_labels is None else true_labels.in_set(predictions)
                write_predictions(_predictions_path(config, image_set.name, name), predictions, in_set)
    return {name: own + imagenet_sets.mean_corruption_error(own) for name, own in results.items()}, of_val


def _path(config: FrozenMunch, what: str, ending: str, weights: str) -> Path:
    """Return the path of <what>-<weights>[-ema]<ending> in the run folder."""
    stem = _stem(config) + ("" if weights == "model" else f"-{weights}")
    return Path(config.util.run_dir) / f"{what}-{stem}{ending}"


def _predictions_path(config: FrozenMunch, image_set: str, weights: str) -> Path:
    return _path(config, "predictions", f"-{image_set.replace('/', '-')}.csv", weights)


def report(
    config: FrozenMunch,
    arch: str,
    sets: list[ImageSet],
    results: dict[str, list[Result]],
    precision: Precision,
    data_config: DataConfig,
    order: ClassOrder,
) -> None:
    """Print tables, transforms and notes, and write them as JSON into the run folder."""
    path = Path(config.util.test_weight_file)
    transforms = {image_set.name: imagenet_sets.describe(image_set.transform) for image_set in sets}
    notes = [note for image_set in sets for note in image_set.notes]
    print_results(results, str(path))
    for transform in dict.fromkeys(transforms.values()):
        families = dict.fromkeys(name.partition("/")[0] for name, own in transforms.items() if own == transform)
        print_lines(f"\n{transform}: {', '.join(families)}")
    if notes:
        print()
    print_lines("\n".join(f"note: {note}" for note in notes))
    written = [_predictions_path(config, s.name, name) for s in sets for name in results if config.eval.predictions]
    content = {
        "weights": str(path),
        "arch": arch,
        "data": next((str(image_set.images.root) for image_set in sets if image_set.name == VAL), None),
        "eval": config.eval.toDict(),
        "classes": order.source,
        "views": transforms,
        "data_config": data_config.as_record(),
        "precision": precision.name,
        "decoder": resolve_decoder(config.data.decoder),
        "environment": environment(),
        "results": [{"weights": name, **result.as_record()} for name, values in results.items() for result in values],
        "notes": notes,
        ORIGINS: origins(_report_path(config), written, path),
    }
    write_json(_report_path(config), content)


def report_classes(config: FrozenMunch, of_val: dict[str, Predictions], weights: Weights, figures: Figures) -> None:
    """Print the worst classes of the preferred weights; write the results by class of all, and print their paths."""
    found = {name: ClassResults.of(predictions) for name, predictions in of_val.items()}
    suffixes = {name: f" ({name})" if len(of_val) > 1 else "" for name in of_val}
    if found:
        print_worst_classes(found[weights.preferred], suffixes[weights.preferred])
        print()
    for name, predictions in of_val.items():
        title = f"{config.util.test_weight_file}\n{weights.arch}{suffixes[name]}"
        paths = partial(_path, config, weights=name)
        for what, path in write_class_results(found[name], predictions, paths, figures, title).items():
            print_lines(f"{what}{suffixes[name]}: {path}")
        if config.eval.predictions:
            print_lines(f"prediction of each image{suffixes[name]}: {_predictions_path(config, VAL, name)}")
