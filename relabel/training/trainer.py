"""The training loop: image batches and label maps in, weights and a run folder out."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from relabel.augment import augment
from relabel.cutmix import cutmix
from relabel.data.loader import Batch
from relabel.data.skipped_images import SkippedImages
from relabel.targets import TargetMaker
from relabel.training.validation import evaluate
from utils.checkpoint import BEST, LAST, PREVIOUS, save_checkpoint
from utils.errors import SharedError
from utils.metrics import TrainingMeter
from utils.precision import Precision
from utils.processes.distributed import Process, StopRequest, broadcast_buffers, gather_rows, wait_for_all
from utils.processes.guard import StepGuard, Verdict, assert_finite
from utils.progress import JobProgress
from utils.random import STEP, keyed_rng
from utils.run_log import MetricsLog, read_status, write_status


class Preempted(Exception):
    """The run was asked to stop; everything is saved."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The recipe as plain values and functions.

    Attributes:
        learning_rate: update number (from 0) -> rate.
        targets: makes the soft targets [B, K] of a batch, smoothing included.
        cutmix_epochs: CutMix is on in the epochs below this number, counted from 0.
        ema_decay: of the averaged weights; 0 = none.
        checkpoint_s: seconds between checkpoints inside an epoch.
    """

    epochs: int
    steps_per_epoch: int
    accumulation: int
    learning_rate: Callable[[int], float]
    targets: TargetMaker
    cutmix_prob: float
    cutmix_beta: float
    cutmix_epochs: int
    clip_grad_norm: float
    ema_decay: float
    seed: int
    print_freq: int
    checkpoint_s: float

    @property
    def total_steps(self) -> int:
        """Updates in the whole run."""
        return self.epochs * self.steps_per_epoch


class Trainer:
    """One run: everything that changes while it trains, and the way back from a checkpoint.

    Time is the number of updates done, `step`; epoch, learning rate and every random choice follow from it.

    Args:
        model: on the device of its place, without DDP.
        optimizer: of its parameters.
        plan: the recipe.
        precision: number formats of the forward pass.
        place: this process among all.
        train_batches: first step -> this process's batches from there to the run's end, on the device.
        test_batches: -> this process's share of the validation set.
        skipped_images: those that the run leaves out; none yet.
        folder: the run folder.
        identity: plain values that every checkpoint carries (arch, class_names, fingerprint of the data).
        tensorboard: also write TensorBoard events.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        recipe: Recipe,
        precision: Precision,
        process: Process,
        train_batches: Callable[[int], Iterable[Batch]],
        test_batches: Callable[[], Iterable[Batch]],
        skipped_images: SkippedImages,
        folder: Path,
        identity: dict[str, Any],
        tensorboard: bool = False,
    ) -> None:
        self.model, self.optimizer, self.recipe, self.precision, self.process = (
            model,
            optimizer,
            recipe,
            precision,
            process,
        )
        self.folder, self.identity, self.tensorboard = folder, identity, tensorboard
        self.train_batches, self.test_batches = train_batches, test_batches
        self.skipped_images = skipped_images
        self.ema = (
            AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay), use_buffers=True)
            if recipe.ema_decay
            else None
        )
        self.step, self.validated = 0, True  # validated: the epoch that ended at this step, if one did
        self.accuracy, self.best_accuracy, self.best_epoch = 0.0, -1.0, 0
        self.meter = TrainingMeter(process.device)
        self.skipped, self.metrics_bytes = (0, 0), 0
        self.elapsed_s = 0.0  # of this and the continued runs, up to the last record

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return self.step // self.recipe.steps_per_epoch

    @property
    def finished(self) -> bool:
        """Every update is done and its last epoch validated."""
        return self.step == self.recipe.total_steps and self.validated

    # ---- one update: the method, in the order of the paper

    def train_step(self, batches: list[Batch]) -> Verdict:
        """One update from the micro-batches of this process; no weight changes if any process's loss is not finite.

        The gradient is the mean over the images that all processes together could read.
        """
        rng = self._seed_step()
        rate = self.recipe.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total = torch.zeros((), device=self.process.device)
        skipped = [image for batch in batches for image in batch.skipped]
        rows = len(skipped) + sum(map(len, batches))  # the same number on every process
        for i, batch in enumerate(batches, start=1):
            images, targets = self._inputs(batch, rng)
            with self._gradient_sync(i == len(batches)):
                with self.precision.autocast():
                    logits = self.network(images)
                    mean = F.cross_entropy(logits, targets)
                    loss = mean * (len(batch) / rows)
                total += loss.detach()
                if i == len(batches):
                    self.guard.send(total, bool(self.stop_request), self._checkpoint_is_due(), len(skipped))
                self.precision.scaler.scale(loss).backward()
            self.meter.count(logits.detach(), targets, mean.detach())
        verdict = self.guard.receive()
        if not verdict.finite:
            self._stop_non_finite(total.item(), rate)
        if verdict.skipped_images:
            self.skipped_images.note(skipped, self.epoch + 1)
            planned = rows * self.process.world_size
            self._scale_gradients(planned / (planned - verdict.skipped_images))
        self._update()
        return verdict

    def _seed_step(self) -> np.random.Generator:
        """Dropout and stochastic depth draw from torch's generators, CutMix from the one returned."""
        rng = keyed_rng(self.recipe.seed, STEP, self.step, self.process.rank)
        torch.manual_seed(int(rng.integers(2**63)))
        return rng

    def _inputs(self, batch: Batch, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Augmented images [B, 3, S, S] and soft targets [B, K]."""
        images = augment(batch.images, batch.flips, batch.jitter_orders, batch.jitter_factors, batch.lighting)
        targets = self.recipe.targets(batch.labels, batch.boxes, batch.scores, batch.classes)
        if self.epoch < self.recipe.cutmix_epochs and rng.random() < self.recipe.cutmix_prob:
            images, targets = cutmix(images, targets, rng, self.recipe.cutmix_beta)
        return images.contiguous(memory_format=torch.channels_last), targets

    def _gradient_sync(self, now: bool) -> AbstractContextManager[object]:
        """Gradients of several micro-batches are exchanged with the last one."""
        if now or not isinstance(self.network, DistributedDataParallel):
            return nullcontext()
        return self.network.no_sync()

    def _scale_gradients(self, factor: float) -> None:
        """From a sum over the images that were read, divided by those that were planned, to their mean."""
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad *= factor

    def _update(self) -> None:
        scaler = self.precision.scaler
        if self.recipe.clip_grad_norm:
            scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad_norm)
        scaler.step(self.optimizer)
        scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update_parameters(self.model)
        self.step += 1
        self.validated = self.step % self.recipe.steps_per_epoch != 0

    # ---- the loop

    def fit(self) -> None:
        """Train from where the run stands to its end, validating after each epoch.

        Raises:
            Preempted: a signal asked for a stop; the run is saved and the same command continues it.
            UserError: a non-finite loss, a damaged file, a full disk. The last good checkpoint is intact.
        """
        self.begin()
        with self.progress, self.stop_request:
            if not self.validated:
                self.validate()
            while self.step < self.recipe.total_steps:
                self.train_epoch()
                self.save()
                self.validate()
        if self.process.is_main:
            self.log.close()
            self.write_done()

    def write_done(self) -> None:
        """The last word of a run."""
        write_status(self.folder, "done", step=self.step, epoch=self.epoch, top1_percent=self.accuracy)

    def begin(self) -> None:
        """What comes before the first update: DDP, workers, progress, the log."""
        self.network: nn.Module = self.model
        if self.process.world_size > 1:
            device_ids = [self.process.device.index] if self.process.device.type == "cuda" else None
            self.network = DistributedDataParallel(self.model, device_ids=device_ids)
            self.network.broadcast_buffers = False  # before validation instead; the argument's name differs by version
            if not device_ids:
                # After its first update DDP groups the gradients anew, in the order in which they came, and three or
                # more processes then add them up otherwise: a continued run would not do as the undisturbed one. On a
                # CPU, where runs repeat bit for bit, it groups them now, and then never again.
                self.network.reducer._push_all_rebuilt_params()
                self.network.reducer._rebuild_buckets()
        self.network.train()
        self.stop_request = StopRequest()
        self.guard = StepGuard(self.process.device, self.precision.scaler, *self.skipped)
        self.batches: Iterator[Batch] = iter(self.train_batches(self.step))
        self.progress = JobProgress(
            "training", self.recipe.total_steps, "steps", done=self.step, lines=False, enabled=self.process.is_main
        )
        if self.process.is_main:
            self.log = MetricsLog(self.folder, self.metrics_bytes, self.tensorboard, self.step)
        self._last_save, self._saved_step = time.monotonic(), self.step
        self._began = time.monotonic() - self.elapsed_s
        self.meter.restart_clock()

    def train_epoch(self) -> None:
        """The updates from here to the end of the epoch."""
        first = self.epoch * self.recipe.steps_per_epoch
        end = first + self.recipe.steps_per_epoch
        while self.step < end:
            with self.meter.waiting():
                batches = [next(self.batches) for _ in range(self.recipe.accumulation)]
            verdict = self.train_step(batches)
            self.progress.advance(1)
            if (self.step - first) % self.recipe.print_freq == 0 or self.step == end:
                self._report()
            if verdict.stop or (verdict.save and self.step < end):
                self.save()
            if verdict.stop:
                self._preempted()

    def validate(self) -> None:
        """Evaluate the weights, and the averaged ones if there are any; keep the best; save."""
        networks = {"model": self.model} | ({"ema": self.ema.module} if self.ema else {})
        for name, network in networks.items():
            broadcast_buffers(network)
            score = evaluate(network, self.test_batches(), self.precision)
            self._record("validation", epoch=self.epoch, weights=name, **score.as_record())
            self._say(f"epoch {self.epoch}/{self.recipe.epochs}  validation{' of the EMA' * (name == 'ema')}  {score}")
        self.accuracy, self.validated = score.top1_percent, True  # the EMA's where there is one: it comes last
        is_best = self.accuracy > self.best_accuracy
        if is_best:
            self.best_accuracy, self.best_epoch = self.accuracy, self.epoch
        self.save(also_as_best=is_best)
        self.meter.restart_clock()

    def _report(self) -> None:
        """One record over all processes and all steps since the last one."""
        values = self.meter.report()
        skipped = {"skipped_updates": self.guard.skipped, "skipped_images": len(self.skipped_images)}
        epoch, rate = (self.step - 1) // self.recipe.steps_per_epoch + 1, self.recipe.learning_rate(self.step - 1)
        self._record("train", epoch=epoch, learning_rate=rate, **skipped, **values)
        self._say(
            f"epoch {epoch}/{self.recipe.epochs}  step {self.step:,}/{self.recipe.total_steps:,}  "
            f"loss {values['loss']:.4f}  top-1 {values['top1_percent']:.2f} %  lr {rate:.5f}  "
            f"{values['images_per_s']:,.0f} images/s  data wait {values['data_wait_percent']:.0f} %  "
            f"{self.progress.time_left()}"
        )

    def _record(self, event: str, **values: Any) -> None:
        self.elapsed_s = time.monotonic() - self._began
        if self.process.is_main:
            self.log.write(event, self.step, **values, elapsed_s=self.elapsed_s)

    def _say(self, line: str) -> None:
        if self.process.is_main:
            self.progress.print_line(line)

    # ---- endings

    def _preempted(self) -> None:
        if self.process.is_main:
            who = self.stop_request.signal_name or "another process"
            self._say(f"stopped by {who} at step {self.step:,}; the same command continues this run")
            write_status(self.folder, "preempted", step=self.step, epoch=self.epoch)
        wait_for_all()  # who starts us may end everybody as soon as the first of us has ended
        raise Preempted

    def _stop_non_finite(self, loss: float, rate: float) -> None:
        self._record("non_finite_loss", loss=loss, learning_rate=rate)
        raise SharedError(
            f"the loss of step {self.step + 1:,} is not finite on some process ({loss} on the main one); this update "
            f"was not made, and the last checkpoint is intact.\n  Set a lower --optim.lr.init, "
            f"--optim.clip_grad_norm 1 or --compute.opt_level bf16, and start with another --util.run_dir."
        )

    # ---- checkpoints

    def save(self, also_as_best: bool = False) -> None:
        """Write the run as it stands; every process takes part, the main one writes.

        Raises:
            UserError: the disk is full, or the weights are no longer finite.
        """
        self.guard.settle()
        meters = gather_rows(self.meter.sums)
        if self.process.is_main:
            assert_finite(self.model, self.optimizer)
            if self.ema:
                assert_finite(self.ema.module, self.optimizer)
            state = self._state(meters)
            if also_as_best:
                save_checkpoint(state, self.folder / BEST)
            older = self.folder / PREVIOUS if self.step != self._saved_step else None
            save_checkpoint(state, self.folder / LAST, keep_old_as=older)
            self._saved_step = self.step
            if read_status(self.folder) != "failed":  # which another process may just have written
                write_status(self.folder, "running", step=self.step, epoch=self.epoch)
        self._last_save = time.monotonic()

    def _checkpoint_is_due(self) -> bool:
        return self.process.is_main and time.monotonic() - self._last_save > self.recipe.checkpoint_s

    def _state(self, meters: Tensor) -> dict[str, Any]:
        return {
            **self.identity,
            "epoch": self.epoch,
            "step": self.step,
            "state_dict": self.model.state_dict(),
            "state_dict_ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "accuracy": self.accuracy,
            "best_accuracy": self.best_accuracy,
            "best_epoch": self.best_epoch,
            "validated": self.validated,
            "skipped_in_a_row": self.guard.skipped_in_a_row,
            "skipped_updates": self.guard.skipped,
            "skipped_images": self.skipped_images.found,
            "elapsed_s": self.elapsed_s,
            "meters": meters,
            "metrics_bytes": self.log.size_on_disk(),
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Take up the run of a checkpoint; call it before fit.

        Args:
            state: what load_latest read, of a run with the same config, data and classes.
        """
        self.model.load_state_dict(state["state_dict"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.precision.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.module.load_state_dict(state["state_dict_ema"])
            self.ema.n_averaged.fill_(state["step"])
        for name in ("step", "validated", "accuracy", "best_accuracy", "best_epoch", "metrics_bytes", "elapsed_s"):
            setattr(self, name, state[name])
        self.skipped = state["skipped_updates"], state["skipped_in_a_row"]
        self.skipped_images.found = state["skipped_images"]
        meters = state["meters"]
        if len(meters) == self.process.world_size:
            self.meter.sums.copy_(meters[self.process.rank])
        elif self.process.is_main:  # another number of processes: the sums stay right, their rounding may not
            self.meter.sums.copy_(meters.sum(dim=0))
