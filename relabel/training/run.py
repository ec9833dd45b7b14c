"""A training run from start to end; every check comes before anything is created."""

import hashlib
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from models.build import create_model
from models.fully_convolutional import fully_convolutional
from relabel.config.rules import PUBLISHED, RESUME, joined_folders
from relabel.data.decode import resolve_decoder
from relabel.data.images import ImageList
from relabel.stores.packed import sha256_of
from relabel.stores.store import label_fingerprint, manifest_of
from relabel.training.agreement import sampled_agreement
from relabel.training.build import TrainingData, make_trainer, memory_advice, open_training_data, set_up_device
from relabel.training.recipe import recipe_notes
from relabel.training.reports import RunFigures, next_commands
from relabel.training.trainer import Trainer
from utils.checkpoint import BEST, LAST
from utils.config.frozen_munch import FrozenMunch
from utils.errors import SharedError, UserError, listed, out_of_memory_reported, with_advice
from utils.files import locked, make_writable
from utils.precision import Precision
from utils.processes.distributed import Process, from_main
from utils.processes.workers import end_workers, raise_worker_death
from utils.progress import command_lines, counted, print_lines
from utils.run_folder import Start, find_start, open_run_folder, share_start
from utils.run_log import read_status, record_environment, write_status

ANOTHER_FOLDER = "Set another --util.run_dir."


def train(process: Process, config: FrozenMunch, figures: RunFigures | None = None) -> None:
    """Run one process of a training run: check, build, resume, fit.

    Args:
        process: this process.
        config: of the run.
        figures: draw the figures of the run; None: there are none.

    Raises:
        UserError: bad input, before anything is created; or as Trainer.fit.
        SystemExit: 143 if preempted; 1 if another process has failed and reported why.
    """
    set_up_device(process.device, config.data.decoder)
    data = open_training_data(config)
    precision = Precision(config.compute.opt_level, process.device)
    identity = identity_of(config, data, precision)

    folder = Path(config.util.run_dir)
    existed = folder.is_dir()
    lock = locked(folder, "the run folder", "training", ANOTHER_FOLDER)
    with ExitStack() as stack:  # the main process locks the run folder to the end

        def begin() -> Start:
            if existed:
                stack.enter_context(lock)
            with with_advice(new_run_advice(folder)):
                return find_start(folder, config, identity, process.world_size, RESUME)

        start = share_start(begin)
        if start.state:
            identity["weights_sha256"] = start.state.get("weights_sha256")  # the file may be gone, and is not needed
        if data.store and not start.state:
            from_main(lambda: check_agreement(config, data))
        with out_of_memory_reported(memory_advice(config)):
            trainer = make_trainer(config, data, precision, process, identity, start)
        start = replace(start, state=None)  # the trainer has its own copy
        trainer.figures, trainer.image_name = figures, data.image_name
        if from_main(lambda: read_status(folder)) == "done" and trainer.step == trainer.recipe.total_steps:
            if process.is_main:
                print_lines(f"{folder} is finished: {closing(config, data, trainer)}\n{onwards(folder, config)}")
            return

        def open_folder() -> None:
            make_writable(folder, "the run folder", ANOTHER_FOLDER)
            if not existed:
                stack.enter_context(lock)
            with with_advice(ANOTHER_FOLDER):
                open_run_folder(folder, config, start, RESUME)

        from_main(open_folder)
        with trainer.stop_request:  # before status.json says "running", so that it also says how the run ended
            fit(config, trainer, lambda: introduce(config, data, trainer, start))
        if process.is_main:
            print_lines(f"finished {folder}: {closing(config, data, trainer)}")


def identity_of(config: FrozenMunch, data: TrainingData, precision: Precision) -> dict[str, Any]:
    """Return what must not change when the run is continued, as plain values for checkpoints and environment.json."""
    identity: dict[str, Any] = {
        "arch": config.model.arch,
        "recipe_sha256": RESUME.fingerprint(config),
        "class_names": list(data.images.class_names),
        "images": len(data.images),
        "images_sha256": fingerprint(data.images),
        "validation_images": len(data.val),
        "validation_images_sha256": fingerprint(data.val),
        "precision": precision.name,
        "decoder": resolve_decoder(config.data.decoder),
        "weights_sha256": _sha256_of_start(config),
    }
    if data.store:
        identity["label_maps_sha256"] = label_fingerprint(config.data.relabel.path, data.store, data.images.labels)
    if data.extra:
        roots = zip(joined_folders(config.data.extra.labels), data.extra, strict=True)
        maps = [label_fingerprint(path, root.store, root.images.labels) for path, root in roots]
        identity["extra_images"] = data.extra_images
        identity["extra_images_sha256"] = fingerprint(*(root.images for root in data.extra))
        identity["extra_label_maps_sha256"] = hashlib.sha256(":".join(maps).encode()).hexdigest()
    return identity


def fingerprint(*lists: ImageList) -> str:
    """Return the sha256 of the names of all images, classes included."""
    digest = hashlib.sha256()
    separator = b""
    for images in lists:
        for start in range(0, len(images), 1 << 16):  # all names at once would take a gigabyte for 14 million images
            digest.update(separator + b"\n".join(images.names[start : start + (1 << 16)].tolist()))
            separator = b"\n"
    return digest.hexdigest()


def check_agreement(config: FrozenMunch, data: TrainingData) -> None:
    """Compare a sample of the label maps with the folders' labels, and print the result.

    Raises:
        UserError: they agree no better than by chance or give no useful targets, unless data.relabel.insist is set.
    """
    assert data.store
    relabel, images = config.data.relabel, data.images
    found, problems = sampled_agreement(
        data.store, images.labels, images.class_names, relabel.fill, relabel.temperature
    )
    if problems:
        message = f"the label maps {relabel.path} are not fit for training:{listed(problems)}"
        if not relabel.insist:
            words = [
                "python",
                "-m",
                "relabel",
                "check",
                relabel.path,
                "--images",
                *images.words(),
                "--fill",
                f"{relabel.fill:g}",
            ]
            command = command_lines([*map(str, words), "--temperature", f"{relabel.temperature:g}"])
            raise UserError(
                f"{message}\n  This command shows more:\n{command}\n"
                "  To train on them all the same: --data.relabel.insist True"
            )
        print_lines(f"warning: {message}\n  data.relabel.insist is True: training on them", sys.stderr)
    print_lines(str(found))
    manifest = manifest_of(Path(relabel.path))
    summed = manifest.summed_classes if manifest else {}
    if found.elsewhere and (warning := found.elsewhere.warning(images.class_names, summed)):
        print_lines(f"warning: {warning}", sys.stderr)
    if data.extra:
        print_lines("the label maps of extra images were not compared: these have no labels")


def new_run_advice(folder: Path) -> str:
    """Tell how to begin a new run beside the one in this folder, also from its weights."""
    advice = "For a new run, set another --util.run_dir."
    weights = next((folder / name for name in (BEST, LAST) if (folder / name).exists()), None)
    if weights is None:
        return advice
    free = next(path for i in count(2) if not (path := folder.with_name(f"{folder.name}-{i}")).exists())
    flags = shlex.join(["--model.weights", str(weights), "--util.run_dir", str(free)])
    return f"{advice} To start from the weights of this one:\n    {flags}"


def onwards(folder: Path, config: FrozenMunch) -> str:
    """Tell how to go on from a finished run."""
    longer = config.optim.epochs + max(1, config.optim.epochs // 2)
    return f"To train longer, raise the number of epochs: --optim.epochs {longer}\n{new_run_advice(folder)}"


def introduce(config: FrozenMunch, data: TrainingData, trainer: Trainer, start: Start) -> None:
    """Print what is about to run, and record its environment."""
    process, folder, recipe = trainer.process, trainer.folder, trainer.recipe
    batch = recipe.batch_size
    was_killed = read_status(folder) == "running"  # but no process is: this one has the lock
    write_status(folder, "running", step=trainer.step, epoch=trainer.epoch)
    record_environment(
        folder,
        start_step=trainer.step,
        processes=process.world_size,
        device=str(process.device),
        classes=len(data.images.class_names),
        epochs=recipe.epochs,
        raised_from=start.grown or None,
        **{name: value for name, value in trainer.identity.items() if name != "class_names"},
    )
    names, found = data.images.class_names, set(data.val.labels.tolist())
    lacking = [name for label, name in enumerate(names) if label not in found]
    parameters = sum(p.numel() for p in trainer.model.parameters())
    processes = "1 process" if process.world_size == 1 else f"{process.world_size} processes"
    labels = f"label maps {config.data.relabel.path}" if config.data.relabel.use else "their labels"
    lines = [
        f"compute.{trainer.precision.note}" if trainer.precision.note else "",
        f"{config.model.arch}, {parameters / 1e6:.2f} million parameters, {trainer.precision.name}, {processes} on "
        f"{process.device.type}, seed {recipe.seed}",
        f"{len(data.images):,} training images of {len(data.images.class_names):,} classes with {labels}; "
        f"{counted(len(data.val), 'validation image')}",
        f"val/ has no images of {len(lacking):,} of the {len(names):,} training classes: {', '.join(lacking[:5])}"
        + ", ..." * (len(lacking) > 5)
        if lacking
        else "",
        f"{data.extra_images:,} extra images with label maps, {round(config.data.extra.share * batch):,} in each batch"
        if data.extra
        else "",
        f"{counted(recipe.epochs, 'epoch')} of {counted(recipe.steps_per_epoch, 'step')}, batch size {batch:,}; "
        f"run folder {folder}",
        *recipe_notes(config, len(data.images), recipe, process),
        "the process that trained here before was killed" if was_killed else "",
        f"continuing at step {trainer.step:,} of {recipe.total_steps:,}" if trainer.step else "",
        *(
            f"{key} was {value:,} and is now larger: the schedule is that of the longer run"
            for key, value in start.grown.items()
        ),
        f"the learning rate goes on at {recipe.learning_rate(trainer.step):.3g}" if start.grown else "",
    ]
    print_lines("\n".join(filter(None, lines)))


def closing(config: FrozenMunch, data: TrainingData, trainer: Trainer) -> str:
    """Describe a finished run, and what to type next."""
    is_teacher = not config.data.relabel.use and _can_make_maps(config, trainer)
    images = data.images.words() if is_teacher else None
    first = data.val.path(0)
    image = str(first) if isinstance(first, Path) else "IMAGE.jpg"  # in a tar file there is no path
    return f"{trainer.result}\n{next_commands(trainer.folder, images, image)}"


def _can_make_maps(config: FrozenMunch, trainer: Trainer) -> bool:
    """Return whether networks of this kind can be turned fully convolutional: a new one, on the CPU, is tried."""
    with suppress(UserError):
        classes = len(trainer.identity["class_names"])
        fully_convolutional(create_model(config.model.arch, classes, trainer.data_config.size).eval())
        return True
    return False


def _sha256_of_start(config: FrozenMunch) -> str | None:
    """Return the sha256 of the file that the run starts from, if there is one."""
    path = Path(config.model.weights)
    return sha256_of(path) if config.model.weights not in PUBLISHED and path.is_file() else None


def fit(config: FrozenMunch, trainer: Trainer, begin: Callable[[], None]) -> None:
    """Run the trainer; an error on any process is recorded in status.json.

    Args:
        config: of the run.
        trainer: set up and ready to train.
        begin: called first, on the main process: it marks the run as running.
    """

    def record(error: BaseException) -> None:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}".removesuffix(": ")
        with suppress(UserError):  # the error itself matters more than a failure to record it
            write_status(trainer.folder, "failed", step=trainer.step, epoch=trainer.epoch, reason=reason)

    def is_echo(error: Exception) -> bool:
        return read_status(trainer.folder) == "failed"

    with errors_reported_once(trainer.process, record, is_echo, memory_advice(config)):
        try:
            from_main(begin)
            if config.compute.compile:
                trainer.model.compile()
            trainer.fit()
        except (KeyboardInterrupt, SystemExit) as end:  # of a program that this run is a part of; or preempted
            if trainer.process.is_main and read_status(trainer.folder) == "running":
                record(end)
            raise


@contextmanager
def errors_reported_once(
    process: Process, record: Callable[[Exception], None], is_echo: Callable[[Exception], bool], memory_advice: str
) -> Iterator[None]:
    """Report an error once, on the process where it occurred; others that lose the connection to it exit silently.

    Args:
        process: this process; UserErrors of the main one are printed by its caller.
        record: records an error.
        is_echo: returns whether an error is only the consequence of another process's error.
        memory_advice: what to do if memory runs out.
    """
    try:
        with out_of_memory_reported(memory_advice):
            try:
                yield
            except RuntimeError as error:  # torch raises the death of a loader worker anywhere in the main thread
                raise_worker_death(error, "--compute.num_workers")
                raise
    except UserError as error:
        if process.is_main or not isinstance(error, SharedError):
            record(error)
            if not process.is_main:
                print_lines(f"error: {error}", sys.stderr)
        raise
    except Exception as error:
        if process.world_size > 1 and is_echo(error):
            sys.exit(1)
        record(error)
        raise
    finally:
        end_workers()
