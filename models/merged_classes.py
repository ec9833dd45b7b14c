"""Several classes of a network as one: their probabilities add up, or are averaged."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MergedClasses(nn.Module):
    """A network whose logits are merged: the logsumexp of a group's logits is the logit of the sum of probabilities.

    Args:
        network: images -> logits [B, K] or [B, K, h, w].
        groups: for each of the K' new classes, the indices of its old ones; each old class is in at most one group.
        mean: the logit of the mean of a group's probabilities instead, up to a constant that all classes share: a
            group does not get more for being larger, where all logits are alike.
    """

    def __init__(self, network: nn.Module, groups: Sequence[Sequence[int]], mean: bool = False) -> None:
        super().__init__()
        self.network = network
        self.mean = mean
        self.several = {new: list(old) for new, old in enumerate(groups) if len(old) > 1}
        self.register_buffer("first", torch.tensor([old[0] for old in groups]), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, K'] or [B, K', h, w]."""
        logits = self.network(images)
        merged: Tensor = logits[:, self.first]
        for new, old in self.several.items():
            merged[:, new] = logits[:, old].logsumexp(dim=1) - self.mean * math.log(len(old))
        return merged
