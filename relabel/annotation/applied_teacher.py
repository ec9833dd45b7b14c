"""A teacher on its device: label maps of batches of whole images, copied to the host while the next are computed."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from relabel.annotation.teacher import Teacher
from relabel.annotation.whole_images import ImageBatch
from relabel.augment import normalise
from relabel.label_map import class_dtype
from utils.errors import UserError
from utils.precision import Precision


@dataclass(frozen=True, slots=True)
class QueuedMaps:
    """Maps being copied to the host.

    Fields:
        rows, reasons: as in ImageBatch.
        scores, classes: [B, k, h, w].
        finite: bool [B]; all logits of the image are finite.
        absent: float [B]; probability of the classes that are not stored, mean over the cells.
        copied: event recorded after the copy; None: the tensors are complete.
    """

    rows: list[int]
    reasons: list[str]
    scores: Tensor
    classes: Tensor
    finite: Tensor
    absent: Tensor
    copied: torch.cuda.Event | None


class AppliedTeacher:
    """Teacher, normalisation and top-k, all on the device.

    Attributes:
        teacher, device, precision: which, where and how it is applied.
        shape: (k, h, w) of a map.
    """

    def __init__(self, teacher: Teacher, device: torch.device, *, k: int, flip: bool, opt_level: str) -> None:
        """Move the teacher to the device; k, flip, opt_level: as in annotator.Settings. UserError: k is not in 1..K."""
        if not 1 <= k <= teacher.num_classes:
            raise UserError(
                f"--top_k is {k} classes per cell, but the teacher knows {teacher.num_classes}; "
                f"expected 1..{teacher.num_classes} (5 in the paper)"
            )
        self.teacher, self.device = teacher, device
        self.precision = Precision(opt_level, device)
        self.shape = (k, *_map_size(teacher))
        self._network = teacher.network.to(device).to(memory_format=torch.channels_last)
        self._flip = flip
        self._id_dtype = torch.from_numpy(np.empty(0, class_dtype(teacher.num_classes))).dtype

    @torch.inference_mode()
    def queue(self, batch: ImageBatch) -> QueuedMaps:
        """Start computing the maps of a batch on the device; on CUDA this returns before they are done."""
        logits = self._logits(batch.images)
        scores, classes = logits.topk(self.shape[0], dim=1)
        # The n absent classes as one more entry: n classes at logit 0 have as much probability as one at log n.
        absent_logit = torch.full_like(scores[:, :1], logits.shape[1] - self.shape[0]).log()
        absent = torch.cat([scores, absent_logit], 1).softmax(1)[:, -1].mean((1, 2))
        finite = logits.isfinite().flatten(1).all(1)
        results = (scores, classes.to(self._id_dtype), finite, absent)
        scores, classes, finite, absent = (tensor.to("cpu", non_blocking=True) for tensor in results)
        copied = None
        if self.device.type == "cuda":
            copied = torch.cuda.Event(blocking=True)  # waiting for it takes no core from workers
            copied.record(torch.cuda.current_stream(self.device))
        return QueuedMaps(batch.rows, batch.reasons, scores, classes, finite, absent, copied)

    def _normalised(self, images: Tensor) -> Tensor:
        """Normalise images uint8 [B, 3, rows, columns], channels last."""
        config = self.teacher.data_config
        if images.is_cuda:
            return normalise(images, mean=config.mean, std=config.std, dtype=self.precision.input_dtype)
        # `normalise` multiplies by reciprocals, which rounds differently: maps would not have the bytes they had.
        mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (config.mean, config.std))
        return ((images.float() - mean) / std).contiguous(memory_format=torch.channels_last)

    def _logits(self, images: Tensor) -> Tensor:
        """Convert images uint8 [B, 3, rows, columns] to logits float32 [B, K, h, w]."""
        inputs = self._normalised(images)
        with self.precision.autocast():
            logits: Tensor = self._network(inputs)
            if not self._flip:
                return logits.float()
            flipped: Tensor = self._network(inputs.flip(3))
        return (logits.float() + flipped.float().flip(3)) / 2


@torch.inference_mode()
def _map_size(teacher: Teacher) -> tuple[int, int]:
    """Return (h, w) of the teacher's maps, by a forward pass on the CPU, where no error can come from a GPU."""
    rows, columns = teacher.data_config.size
    try:
        maps = teacher.network.cpu().eval()(torch.zeros(1, 3, rows, columns))
    except (RuntimeError, ValueError, AssertionError) as error:  # timm checks the size by assert
        raise UserError(
            f"the teacher cannot take images of {rows} x {columns} pixels (rows x columns): {error}. "
            "Give the --size that it was trained with"
        ) from error
    assert maps.ndim == 4 and maps.shape[1] == teacher.num_classes, maps.shape
    return maps.shape[2], maps.shape[3]
