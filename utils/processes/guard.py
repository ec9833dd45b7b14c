"""The agreement of all processes at each step: is the loss finite, stop now, save now."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from utils.errors import SharedError, UserError
from utils.processes.distributed import sum_over_processes

MAX_SKIPPED_IN_A_ROW = 20


@dataclass(frozen=True, slots=True)
class Verdict:
    """The agreement on one step, the same on every process.

    Fields:
        finite: the loss is finite on every process.
        stop, save: at least one process requests it.
        skipped_images: number of skipped images over all processes.
    """

    finite: bool
    stop: bool
    save: bool
    skipped_images: int = 0


class StepGuard:
    """One small all_reduce per step, read only while the backward pass is running, so that no GPU waits for it.

    It also counts the updates that the loss scaler skipped because of non-finite gradients, which are visible one step
    later as a lower scale. GradScaler alone would go on forever with a scale near zero.

    Args:
        device: of the loss.
        scaler: the run's GradScaler.
        skipped, skipped_in_a_row: the counts so far, if a run is continued.
    """

    def __init__(self, device: torch.device, scaler: GradScaler, skipped: int = 0, skipped_in_a_row: int = 0) -> None:
        self.skipped, self.skipped_in_a_row = skipped, skipped_in_a_row
        self._scaler = scaler
        self._scale = scaler.get_scale()
        self._settled = True  # whether the last update has been counted; in a checkpoint it has
        self._one = torch.ones((), device=device)
        self._on_host = torch.zeros(6, pin_memory=device.type == "cuda")
        self._copied = torch.cuda.Event() if device.type == "cuda" else None

    def send(self, loss: Tensor, stop: bool, save: bool, skipped_images: int = 0) -> None:
        """Start the agreement on this step; call it before the backward pass."""
        requests = torch.tensor([float(stop), float(save), float(skipped_images), 1.0])
        requests = requests.to(loss.device, non_blocking=True)
        bad = (~loss.detach().isfinite()).float()
        values = sum_over_processes(torch.cat([requests, torch.stack([bad, self._scaler.scale(self._one).float()])]))
        self._on_host.copy_(values, non_blocking=True)
        if self._copied:
            self._copied.record()

    def receive(self) -> Verdict:
        """Return the agreement on this step; call it after the backward pass has been started.

        Raises:
            SharedError: too many updates in a row were skipped.
        """
        if self._copied:
            self._copied.synchronize()
        stop, save, skipped_images, processes, bad, scales = self._on_host.tolist()
        self._count_last_update(scales / processes)
        self._settled = False
        return Verdict(not bad, bool(stop), bool(save), int(skipped_images))

    def settle(self) -> None:
        """Count the last update now, for the checkpoint.

        Raises:
            SharedError: as in `receive`.
        """
        self._count_last_update(self._scaler.get_scale())

    def _count_last_update(self, scale: float) -> None:
        """Count the last update as skipped if the loss scale has fallen since."""
        if self._settled:
            return
        self._settled = True
        skipped = scale < 0.75 * self._scale
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        self.skipped += skipped
        self._scale = scale
        if self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise SharedError(
                f"{MAX_SKIPPED_IN_A_ROW} updates in a row had non-finite gradients in float16 (loss scale now "
                f"{scale:g})."
            )


def assert_finite(model: torch.nn.Module, optimizer: Optimizer) -> None:
    """Check that weights, batch-norm statistics and the optimizer's averages are finite.

    After a batch norm with infinite variance, activations are finite again, but constant. A gradient too large to be
    squared makes AdamP's average infinite: the weight stays finite but never moves again.

    Raises:
        UserError: a tensor is not finite; the message names the first.
    """
    learned = dict(_learned(model, optimizer))
    if torch.nn.utils.get_total_norm(learned.values()).isfinite():  # one synchronisation instead of one per tensor
        return
    for name, tensor in learned.items():
        if not bool(tensor.isfinite().all()):
            raise UserError(f"{name} is no longer finite, so nothing is saved; the last checkpoint is intact.")


def _learned(model: torch.nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors that an update changes, with their names."""
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            yield f"the buffer {name}", buffer
    for name, parameter in model.named_parameters():
        yield f"the weight {name}", parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                yield f"the optimizer's {key} of {name}", value
