"""The small network of the demos."""

import torch
from torch import Tensor, nn

WIDTHS = (24, 48, 48, 96, 96, 128)
STRIDES = (2, 2, 1, 2, 1, 2)


class DigitNet(nn.Module):
    """Six 3x3 convolutions with batch norm and ReLU, mean over the cells, one linear layer; any input size.

    Args:
        num_classes: K.

    Shapes:
        images float [B, 3, H, W] -> logits float [B, K]; the last feature map has ceil(H / 16) x ceil(W / 16) cells.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width, stride in zip(WIDTHS, STRIDES, strict=True):
            # No bias: the following batch norm would cancel it.
            layers += [nn.Conv2d(channels, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, [B, K]."""
        pooled: Tensor = torch.mean(self.features(images), (2, 3))
        logits: Tensor = self.fc(pooled)
        return logits
