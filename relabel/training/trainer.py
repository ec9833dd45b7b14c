"""The training loop: from batches of images and label maps to weights and a run folder."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from models.data_config import DataConfig
from models.recorded import DATA_CONFIG
from relabel.augment import augment
from relabel.cutmix import cutmix
from relabel.data.batch import Batch
from relabel.data.skipped_images import SkippedImage, SkippedImages
from relabel.targets import TargetMaker
from relabel.training.reports import (
    BATCH_FIGURE,
    CURVES_FIGURE,
    SHOWN,
    RunFigures,
    closing_lines,
    drawn,
    pixels,
    step_lines,
)
from relabel.training.validation import Score
from utils.checkpoint import BEST, LAST, PREVIOUS, link_checkpoint, save_checkpoint
from utils.errors import EXIT_PREEMPTED, SharedError, with_advice
from utils.metrics import TrainingMeter
from utils.precision import Precision
from utils.processes.distributed import Process, StopRequest, broadcast_buffers, from_main, gather_objects, wait_for_all
from utils.processes.guard import StepGuard, Verdict, assert_finite
from utils.progress import JobProgress
from utils.random import STEP, keyed_rng
from utils.run_log import METRICS, MetricsLog, read_metrics, write_status
from utils.weight_average import WeightAverage

NON_FINITE_ADVICE = (
    "Set a lower --optim.lr.init, --optim.clip_grad_norm 1 or --compute.opt_level bf16, and start with another "
    "--util.run_dir."
)
DIVERGING = 3.0  # times ln K
DIVERGENCE_ADVICE = "Lower --optim.lr.init or set --optim.clip_grad_norm 1,\n  in another --util.run_dir."
SAVE_ADVICE = "The same command continues from the last checkpoint, or set another --util.run_dir."


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a run trains, as plain values.

    Fields:
        epochs, steps_per_epoch: length of the run; a step is an update.
        batch_size: images per update, over all processes.
        accumulation: micro-batches per update of one process.
        learning_rate: step -> learning rate of the update that begins there.
        cutmix_prob: probability that a micro-batch is mixed.
        cutmix_beta: the share of pixels to keep is drawn from Beta(beta, beta).
        cutmix_epochs: number of epochs, from the first one, in which CutMix is on.
        clip_grad_norm: largest norm of the gradient; 0 = off.
        ema_decay: decay per update of the averaged weights; 0 = none.
        seed: of every random choice.
        print_freq: steps between progress records.
        checkpoint_minutes: minutes between checkpoints within an epoch.
    """

    epochs: int
    steps_per_epoch: int
    batch_size: int
    accumulation: int
    learning_rate: Callable[[int], float]
    cutmix_prob: float
    cutmix_beta: float
    cutmix_epochs: int
    clip_grad_norm: float
    ema_decay: float
    seed: int
    print_freq: int
    checkpoint_minutes: float

    @property
    def total_steps(self) -> int:
        """Number of updates in the whole run."""
        return self.epochs * self.steps_per_epoch


@dataclass(eq=False)
class Trainer:
    """A training run: its state, the loop, and its checkpoints.

    Time is the number of updates done, `step`; epoch, learning rate and every random choice follow from it.

    Fields:
        model: on the device of its process, without DDP.
        optimizer: of its parameters.
        recipe: how to train.
        precision: number format of the forward pass.
        process: this process.
        train_batches: first step -> this process's batches from there to the end of the run, on the device.
        target_maker: makes the soft targets [B, K] of a batch, smoothing included.
        evaluate: name -> network to name -> Score on the validation set.
        skipped_images: images that the run has skipped; initially empty.
        identity: plain values that every checkpoint contains (arch, class_names, fingerprint of the data).
        data_config: what the network expects of its input; every checkpoint contains it.
        folder: the run folder.
        tensorboard: also write TensorBoard events.
        wandb: also send the metrics to Weights & Biases.
        figures: draw the figures of the run; None: there are none.
        image_name: name of an image by its index, for these.
        network, batches, progress, log: the model, in DDP if there are several processes; the rest of train_batches;
            the progress bar; the metrics (main process only). Set by `begin`, because they depend on the step.
    """

    model: nn.Module
    optimizer: Optimizer
    recipe: Recipe
    precision: Precision
    process: Process
    train_batches: Callable[[int], Iterable[Batch]]
    target_maker: TargetMaker
    evaluate: Callable[[Mapping[str, nn.Module]], dict[str, Score]]
    skipped_images: SkippedImages
    identity: dict[str, Any]
    data_config: DataConfig
    folder: Path
    tensorboard: bool = False
    wandb: bool = False
    figures: RunFigures | None = None
    image_name: Callable[[int], str] = str
    network: nn.Module = field(init=False)
    batches: Iterator[Batch] = field(init=False)
    progress: JobProgress = field(init=False)
    log: MetricsLog = field(init=False)

    def __post_init__(self) -> None:
        """Set the state of a run at step 0."""
        self.ema = WeightAverage(self.model, self.recipe.ema_decay) if self.recipe.ema_decay else None
        self.guard = StepGuard(self.process.device, self.precision.scaler)
        self.step, self.validated = 0, True  # validated: no validation is pending at this step
        self.accuracy, self.best_accuracy, self.best_epoch = 0.0, -1.0, 0
        self.meter = TrainingMeter(self.process.device)
        self.metrics_bytes = 0
        self.elapsed_s = 0.0  # up to the last record, over all commands of this run
        self.stop_request = StopRequest()
        self._on_bar = "", ""  # the last loss and speed, as text
        self._began = self._last_save = time.monotonic()
        self._saved_step, self._is_warned = 0, False
        self._first_loss: Tensor | None = None  # of this command

    @property
    def epoch(self) -> int:
        """Number of completed epochs."""
        return self.step // self.recipe.steps_per_epoch

    @property
    def result(self) -> str:
        """Time, speed, and the accuracies of the best and the last checkpoint, as lines."""
        epochs = {
            BEST: (self.best_epoch, self.best_accuracy),
            LAST: (self.epoch, self.accuracy),
        }
        records = read_metrics(self.folder) if (self.folder / METRICS).is_file() else []
        return closing_lines(epochs, records, self.elapsed_s, self.ema is not None)

    # ---- one update: the method, in the order of the paper

    def train_step(self, batches: list[Batch]) -> Verdict:
        """Make one update from the micro-batches of this process, unless the loss of any process is not finite.

        The gradient is the mean over the images that could be read, on all processes.
        """
        rng = self._begin_step()
        planned = sum(len(batch) + len(batch.skipped) for batch in batches)  # the same on every process
        total = torch.zeros((), device=self.process.device)
        for i, batch in enumerate(batches, start=1):
            images, targets = self.network_input(batch, rng)
            with self._gradient_exchange(i == len(batches)):
                with self.precision.autocast():
                    logits = self.network(images.contiguous(memory_format=torch.channels_last))
                    loss = F.cross_entropy(logits, targets)
                share = loss * (len(batch) / planned)
                total += share.detach()
                if i == len(batches):
                    self._send(total, batches)
                self.precision.scaler.scale(share).backward()
            self.meter.count(logits.detach(), targets, loss.detach())
        self._first_loss = total if self._first_loss is None else self._first_loss
        verdict = self._receive(total, batches, planned)
        self._update()
        return verdict

    def network_input(self, batch: Batch, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return a batch as the network gets it: [B, 3, S, S] in its input format, and its targets float32 [B, K]."""
        images = augment(
            batch.images, batch.flips, batch.jitter_orders, batch.jitter_factors, batch.lighting,
            mean=self.data_config.mean, std=self.data_config.std, dtype=self.precision.input_dtype,
        )  # fmt: skip
        targets = self.target_maker(batch.labels, batch.boxes, batch.scores, batch.classes)
        if self._cutmix_is_on and rng.random() < self.recipe.cutmix_prob:
            images, targets = cutmix(images, targets, rng, self.recipe.cutmix_beta)
        return images, targets

    @property
    def _cutmix_is_on(self) -> bool:
        return self.epoch < self.recipe.cutmix_epochs

    def _begin_step(self) -> np.random.Generator:
        """Set the learning rate, seed dropout and stochastic depth, and return CutMix's generator."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate(self.step)
        rng = keyed_rng(self.recipe.seed, STEP, self.step, self.process.rank)
        torch.manual_seed(int(rng.integers(2**63)))
        return rng

    def _gradient_exchange(self, now: bool) -> AbstractContextManager[object]:
        """Return the context of a backward pass: processes exchange gradients only with the last micro-batch."""
        if now or not isinstance(self.network, DistributedDataParallel):
            return nullcontext()
        return self.network.no_sync()

    def _send(self, loss: Tensor, batches: list[Batch]) -> None:
        """Start the agreement on this step, which overlaps with the backward pass."""
        minutes = (time.monotonic() - self._last_save) / 60
        is_due = self.process.is_main and minutes > self.recipe.checkpoint_minutes
        self.guard.send(loss, bool(self.stop_request), is_due, len(_skipped(batches)))

    def _receive(self, loss: Tensor, batches: list[Batch], planned: int) -> Verdict:
        """Act on the agreement: stop on a non-finite loss, leave skipped images out of the mean."""
        with with_advice(NON_FINITE_ADVICE):
            verdict = self.guard.receive()
            if not verdict.finite:
                self._record("non_finite_loss", loss=loss.item(), learning_rate=self.recipe.learning_rate(self.step))
                raise SharedError(
                    f"the loss of step {self.step + 1:,} is not finite on at least one process ({loss.item()} on the "
                    "main one); this update was not made, and the last checkpoint is intact."
                )
        if verdict.skipped_images:
            self.skipped_images.record(_skipped(batches), self.epoch + 1)
            planned_in_all = planned * self.process.world_size
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad *= planned_in_all / (planned_in_all - verdict.skipped_images)
        return verdict

    def _update(self) -> None:
        scaler = self.precision.scaler
        if self.recipe.clip_grad_norm:
            scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad_norm)
        scaler.step(self.optimizer)
        scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.model, first=self.step == 0)
        self.step += 1
        self.validated = self.step % self.recipe.steps_per_epoch != 0

    # ---- the loop

    def fit(self) -> None:
        """Train from the current step to the end of the run, validating after each epoch.

        Raises:
            SystemExit: 143, after a signal set `stop_request`; the run is saved, and the same command continues it.
            UserError: a non-finite loss, a damaged file or a full disk. The last good checkpoint is intact.
        """
        self.begin()
        with self.progress:
            if not self.validated:
                self.validate()
            while self.step < self.recipe.total_steps:
                self.train_epoch()
                self.save()
                self.validate()
        if self.process.is_main:
            self.log.close()
            write_status(self.folder, "done", step=self.step, epoch=self.epoch, top1_percent=self.accuracy)
            self._draw_curves()

    def begin(self) -> None:
        """Set up DDP, workers, the progress bar and the log."""
        self.network = self.model
        if self.process.world_size > 1:
            device_ids = [self.process.device.index] if self.process.device.type == "cuda" else None
            self.network = DistributedDataParallel(self.model, device_ids=device_ids)
            self.network.broadcast_buffers = False  # done before validation; the argument's name depends on the version
            if not device_ids:
                # After its first update DDP regroups the gradients in the order in which they arrived, so that three or
                # more processes add them in another order: a continued run would differ from an uninterrupted one. On
                # a CPU, where runs are reproducible bit for bit, they are regrouped now and never again.
                self.network.reducer._push_all_rebuilt_params()
                self.network.reducer._rebuild_buckets()
        self.network.train()
        self.batches = iter(self.train_batches(self.step))
        self.progress = JobProgress(
            "training", self.recipe.total_steps, "steps", done=self.step, lines=False, enabled=self.process.is_main
        )
        if self.process.is_main:
            self.log = MetricsLog(self.folder, self.metrics_bytes, self.tensorboard, self.step, self.wandb)
        self._last_save, self._saved_step = time.monotonic(), self.step
        self._began = time.monotonic() - self.elapsed_s
        self.meter.restart_clock()

    def train_epoch(self) -> None:
        """Train from the current step to the end of the epoch."""
        first = self.epoch * self.recipe.steps_per_epoch
        end = first + self.recipe.steps_per_epoch
        while self.step < end:
            with self.meter.waiting():
                batches = [next(self.batches) for _ in range(self.recipe.accumulation)]
            if self.step == 0:
                self._draw_batch(batches[0])
            verdict = self.train_step(batches)
            self.progress.advance(1)
            if (self.step - first) % self.recipe.print_freq == 0 or self.step == end:
                self._report()
            if verdict.stop or (verdict.save and self.step < end):
                self.save()
            if verdict.stop:
                self._stop()

    def validate(self) -> None:
        """Evaluate the weights and, in the same pass, the averaged ones if there are any; keep the best; save."""
        networks = {"model": self.model} | ({"ema": self.ema.module} if self.ema else {})
        for network in networks.values():
            broadcast_buffers(network)
        for name, score in self.evaluate(networks).items():
            self._record("validation", epoch=self.epoch, weights=name, **asdict(score))
            self._print(f"epoch {self.epoch}/{self.recipe.epochs}  validation{' (EMA)' * (name == 'ema')}  {score}")
        self.accuracy, self.validated = score.top1_percent, True  # of the EMA if there is one, because it comes last
        is_best = self.accuracy > self.best_accuracy
        if is_best:
            self.best_accuracy, self.best_epoch = self.accuracy, self.epoch
        self._update_bar()
        self.save(is_best=is_best)
        self.meter.restart_clock()

    def _report(self) -> None:
        """Record the averages over all processes and all steps since the last report."""
        values = self.meter.report()
        skipped = {"skipped_updates": self.guard.skipped, "skipped_images": len(self.skipped_images)}
        epoch, rate = (self.step - 1) // self.recipe.steps_per_epoch + 1, self.recipe.learning_rate(self.step - 1)
        self._record("train", epoch=epoch, learning_rate=rate, **skipped, **values)
        learns, speed, note = step_lines(values, rate, self.progress.time_left())
        begin = f"epoch {epoch}/{self.recipe.epochs}  "
        self._print(f"{begin}step {self.step:,}  {learns}")
        self._warn_of_divergence(values["loss"], rate)
        self._on_bar = f"loss {values['loss']:.3f}", note
        self._update_bar()
        if not self.progress.live:
            self._print(f"{'':{len(begin)}}{speed}")

    def _warn_of_divergence(self, loss: float, rate: float) -> None:
        """Say once that the loss is far above ln K, that of a network which knows nothing, and above where it began."""
        assert self._first_loss is not None
        uniform = math.log(self.target_maker.num_classes)
        if not self._is_warned and loss > DIVERGING * max(uniform, self._first_loss.item()):
            self._is_warned = True
            self._print(
                f"warning: the loss {loss:.4g} is far above ln K = {uniform:.2f}, which guessing gives: the training\n"
                f"  diverges at learning rate {rate:.3g}. {DIVERGENCE_ADVICE}"
            )

    def _update_bar(self) -> None:
        """Show the last loss, the last top-1 and the speed."""
        loss, speed = self._on_bar
        top1 = f"  top-1 {self.accuracy:.1f} %" if self.best_epoch else ""
        self.progress.note = f"{loss}{top1}  {speed}" if loss else None

    def _record(self, event: str, **values: Any) -> None:
        self.elapsed_s = time.monotonic() - self._began
        if self.process.is_main:
            self.log.write(event, self.step, **values, elapsed_s=self.elapsed_s)

    def _print(self, line: str) -> None:
        if self.process.is_main:
            self.progress.print_line(line)

    def _stop(self) -> None:
        if self.process.is_main:
            sender = self.stop_request.signal_name or "another process"
            self._print(f"stopped by {sender} at step {self.step:,}; the same command continues this run")
            write_status(self.folder, "preempted", step=self.step, epoch=self.epoch)
            self._draw_curves()
        wait_for_all()  # a launcher may end all processes as soon as the first one exits
        sys.exit(EXIT_PREEMPTED)

    # ---- figures, by the main process

    def _draw_batch(self, batch: Batch) -> None:
        """Draw what the network will get first; it gets the same again, because each step seeds its own generator."""
        if not (self.figures and self.process.is_main and len(batch)):
            return
        images, targets = (part[:SHOWN] for part in self.network_input(batch, self._begin_step()))
        share = self.recipe.cutmix_prob * self._cutmix_is_on
        mixing = f"; CutMix in {100 * share:.0f} % of the batches" if share else ""
        heading = f"first batch, as the network gets it{mixing}"
        labels, names = batch.labels[:SHOWN].tolist(), [self.image_name(i) for i in batch.indices[:SHOWN].tolist()]
        about = labels, names, self.identity["class_names"], heading
        shown = pixels(images.float(), self.data_config), targets.cpu().numpy(), *about
        path = self.folder / BATCH_FIGURE
        if drawn(path, self.figures.batch, *shown):
            self._print(f"first batch with its targets: {path}")
        self.meter.restart_clock()

    def _draw_curves(self) -> None:
        """Draw the curves up to here, if there has been a validation."""
        path = self.folder / CURVES_FIGURE
        if self.figures and self.best_epoch and drawn(path, self.figures.curves, read_metrics(self.folder)):
            self._print(f"curves: {path}")

    # ---- checkpoints

    def save(self, is_best: bool = False) -> None:
        """Write a checkpoint; every process takes part, the main one writes.

        Raises:
            UserError: the disk is full, or the weights are no longer finite.
        """
        with with_advice(NON_FINITE_ADVICE):
            self.guard.settle()
        # Now, while the others wait: later one of them could fail and record that at the same time.
        from_main(lambda: write_status(self.folder, "running", step=self.step, epoch=self.epoch))
        meters = torch.stack(gather_objects(self.meter.sums.cpu()))
        if self.process.is_main:
            with with_advice(NON_FINITE_ADVICE):
                for network in (self.model, self.ema.module) if self.ema else (self.model,):
                    assert_finite(network, self.optimizer)
            with with_advice(SAVE_ADVICE):
                self._write(self._state(meters), is_best)
        self._last_save = time.monotonic()

    def _write(self, state: dict[str, Any], is_best: bool) -> None:
        """Write the last checkpoint, after the best one: if the run is killed in between, it validates again."""
        previous = self.folder / PREVIOUS if self.step != self._saved_step else None
        if is_best:
            save_checkpoint(state, self.folder / BEST)
            link_checkpoint(self.folder / BEST, self.folder / LAST, keep_old_as=previous)
        else:
            save_checkpoint(state, self.folder / LAST, keep_old_as=previous)
        self._saved_step = self.step

    def _stateful(self) -> dict[str, Any]:
        """Return the parts that have a state_dict, by their key in a checkpoint."""
        parts = {"state_dict": self.model, "optimizer": self.optimizer, "scaler": self.precision.scaler}
        return parts | ({"state_dict_ema": self.ema.module} if self.ema else {})

    def _state(self, meters: Tensor) -> dict[str, Any]:
        self.metrics_bytes = self.log.size_on_disk()
        return {
            **self.identity,
            DATA_CONFIG: self.data_config.as_record(),
            **{name: getattr(self, name) for name in _COUNTERS},
            "epoch": self.epoch,
            "state_dict_ema": None,
            **{key: part.state_dict() for key, part in self._stateful().items()},
            "skipped_in_a_row": self.guard.skipped_in_a_row,
            "skipped_updates": self.guard.skipped,
            "skipped_images": self.skipped_images.found,
            "meters": meters,
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint; call this before fit.

        Args:
            state: from load_latest, of a run with the same config, data and classes.
        """
        for key, part in self._stateful().items():
            part.load_state_dict(state[key])
        for name in _COUNTERS:
            setattr(self, name, state[name])
        counts = state["skipped_updates"], state["skipped_in_a_row"]
        self.guard = StepGuard(self.process.device, self.precision.scaler, *counts)
        self.skipped_images.found = state["skipped_images"]
        meters = state["meters"]
        if meters.shape[1] != len(self.meter.sums):  # of an earlier version: the next averages begin here
            return
        if len(meters) == self.process.world_size:
            self.meter.sums.copy_(meters[self.process.rank])
        elif self.process.is_main:  # another number of processes: only the rounding of the sums may change
            self.meter.sums.copy_(meters.sum(dim=0))


_COUNTERS = ("step", "validated", "accuracy", "best_accuracy", "best_epoch", "metrics_bytes", "elapsed_s")


def _skipped(batches: list[Batch]) -> list[SkippedImage]:
    return [image for batch in batches for image in batch.skipped]
