"""Formats of the forward pass: float32, or torch.amp autocast with float16 or bfloat16; order in memory."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.amp import GradScaler


class Precision:
    """What `compute.opt_level` means on one kind of device.

    O0 is float32; O1 float16 autocast with a GradScaler; O2 ran no faster than O1 end to end and is the same here;
    bf16 is bfloat16 autocast without a scaler. Half precision without a GPU is slower, so O1 becomes float32 there.

    Attributes:
        dtype: of the autocast regions; None = no autocast.
        scaler: a GradScaler, disabled (it passes values through) unless dtype is float16.
        note: one line for the person where the level does not mean what it says; else ''.
    """

    def __init__(self, opt_level: str, device: torch.device) -> None:
        self.device = device
        self.note = ""
        self.dtype: torch.dtype | None = {"O0": None, "bf16": torch.bfloat16}.get(opt_level, torch.float16)
        if self.dtype is torch.float16 and device.type == "cpu":
            self.dtype = None
            self.note = f"compute.opt_level {opt_level} runs as float32: this machine shows no GPU"
        elif opt_level == "O2":
            self.note = "compute.opt_level O2 runs as O1 (float16 autocast)"
        self.scaler = GradScaler(device.type, enabled=self.dtype is torch.float16)

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()

    @property
    def name(self) -> str:
        """float32, float16 or bfloat16."""
        return str(self.dtype or torch.float32).removeprefix("torch.")
