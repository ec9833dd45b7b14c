"""The two halves of a classifier of cells: the features of each cell of an image, and the head applied to each cell.

Between the halves, features are a map or a sequence of tokens; a layout converts either to [B, C, h, w] and back.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from utils.errors import UserError


@dataclass(frozen=True, slots=True)
class Map:
    """Layout of features [B, C, h, w], or [B, h, w, C] if the channels are last."""

    channels_last: bool = False

    def cells(self, features: Tensor, images: Tensor) -> Tensor:
        """Convert the features of images [B, 3, H, W] to [B, C, h, w]."""
        return features.permute(0, 3, 1, 2) if self.channels_last else features

    def features(self, cells: Tensor) -> Tensor:
        """Convert [B, C, h, w] to what the head takes."""
        return cells.permute(0, 2, 3, 1) if self.channels_last else cells


@dataclass(frozen=True, slots=True)
class Tokens:
    """Layout of features [B, prefix + h w, C]: class token and the like, then one token per patch, row by row.

    Fields:
        prefix: number of tokens before the patch tokens.
        stride: side of a patch, pixels.
    """

    prefix: int
    stride: int

    def cells(self, features: Tensor, images: Tensor) -> Tensor:
        """Convert the features of images [B, 3, H, W] to [B, C, h, w].

        Raises:
            UserError: the patches do not form a grid of this stride over the image.
        """
        patches = features[:, self.prefix :].transpose(1, 2)
        rows, columns = images.shape[2:]
        whole = (rows // self.stride, columns // self.stride)
        padded = (-(-rows // self.stride), -(-columns // self.stride))
        for grid in (whole, padded):
            if grid[0] * grid[1] == patches.shape[2]:
                return patches.unflatten(2, grid)
        raise UserError(
            f"the network makes {patches.shape[2]} patch tokens from an image of {rows} x {columns} pixels (rows x "
            f"columns); expected a grid with one token per {self.stride} pixels. Choose another architecture"
        )

    def features(self, cells: Tensor) -> Tensor:
        """Convert [B, C, h, w] to what the head takes; the mean of the cells replaces each token before the patches."""
        prefix = cells.mean((2, 3)).unsqueeze(1).expand(-1, self.prefix, -1)
        return torch.cat([prefix, cells.flatten(2).transpose(1, 2)], 1)

    def without_prefix(self, features: Tensor) -> Tensor:
        """Set the tokens before the patches to zero."""
        return torch.cat([torch.zeros_like(features[:, : self.prefix]), features[:, self.prefix :]], 1)


Layout = Map | Tokens


class CellFeatures(nn.Module):
    """The first half of a network: images [B, 3, H, W] -> features of its cells [B, C, h, w]."""

    def __init__(self, part: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.part, self.layout = part, layout

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, C, h, w]."""
        return self.layout.cells(self.part(images), images)


class CellHead(nn.Module):
    """The second half of a network, applied to each cell separately: [B, C, h, w] -> [B, K, h, w]."""

    def __init__(self, part: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.part, self.layout = part, layout

    def forward(self, cells: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, K, h, w]."""
        batch, channels, h, w = cells.shape
        separate = cells.permute(0, 2, 3, 1).reshape(-1, channels, 1, 1)
        logits: Tensor = self.part(self.layout.features(separate))
        return logits.reshape(batch, h, w, -1).permute(0, 3, 1, 2)
