"""Number format of the forward pass: float32, or torch.amp autocast with float16 or bfloat16."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler


class Precision:
    """What an optimization level (O0 to O2 as in apex, or bf16) means on one kind of device.

    O0 is float32; O1 float16 autocast with a GradScaler; O2 is the same as O1, because it ran no faster end to end;
    bf16 is bfloat16 autocast without a scaler. On a CPU float16 is slower than float32, so O1 becomes float32 there.

    Attributes:
        device: of the forward pass.
        dtype: of the autocast regions; None: no autocast.
        scaler: a GradScaler; disabled, so that values pass through, unless dtype is float16.
        note: what the level runs as, if that differs from its name ("O2 runs as ..."); else "".
    """

    def __init__(self, opt_level: str, device: torch.device) -> None:
        self.device = device
        self.note = ""
        self.dtype: torch.dtype | None = {"O0": None, "bf16": torch.bfloat16}.get(opt_level, torch.float16)
        if self.dtype is torch.float16 and device.type == "cpu":
            self.dtype = None
            self.note = f"opt_level {opt_level} runs as float32: this machine has no visible GPU"
        elif opt_level == "O2":
            self.note = "opt_level O2 runs as O1 (float16 autocast)"
        self.scaler = GradScaler(device.type, enabled=self.dtype is torch.float16)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the autocast context of a forward pass."""
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()

    @property
    def input_dtype(self) -> torch.dtype:
        """Format in which images are handed to a network: on a GPU, what its first layer would convert them to."""
        return self.dtype if self.dtype and self.device.type == "cuda" else torch.float32

    @contextmanager
    def evaluation(self, *models: nn.Module) -> Iterator[None]:
        """Enter autocast for forward passes whose logits are compared: the last linear layer runs in float32.

        Half precision would round logits that are close together to the same value.
        """
        with ExitStack() as stack:
            for model in models if self.dtype else ():
                if layers := [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]:
                    hook = layers[-1].register_forward_hook(_in_float32)
                    stack.callback(hook.remove)
            stack.enter_context(self.autocast())
            yield

    def logits(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Return a network's logits, float32 [B, K], within `evaluation`; rows that overflow float16 again in float32.

        In training batch norm keeps activations small. In evaluation it divides by averages, which lag behind weights
        that change fast, so that activations grow from layer to layer.
        """
        logits: Tensor = model(inputs).float()
        finite = logits.isfinite().all(dim=1, keepdim=True)
        if self.dtype is torch.float16 and not bool(finite.all()):
            with torch.autocast(self.device.type, enabled=False):
                logits = logits.where(finite, model(inputs.float()).float())
        return logits

    @property
    def name(self) -> str:
        """Name of the number format: float32, float16 or bfloat16."""
        return str(self.dtype or torch.float32).removeprefix("torch.")


def _in_float32(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Any:
    """Recompute a layer's output in float32; a forward hook."""
    with torch.autocast(output.device.type, enabled=False):
        return layer.forward(inputs[0].float())
