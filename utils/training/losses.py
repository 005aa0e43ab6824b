"""What training minimises on a batch: the loss of its labels. That of a teacher is in distillation.py."""
from typing import NamedTuple

import torch
from torch import nn

from nets.head import IGNORE


class Outcome(NamedTuple):
    """What a loss returns for a batch."""
    loss: torch.Tensor        # scalar, with gradient
    correct: torch.Tensor     # float (B,): 1 if the target's cosine, without margin, is the largest; NaN without labels
    embeddings: torch.Tensor  # (B, D), not normalised, detached


class LabelLoss(nn.Module):
    """`loss(images, labels, lam, targets)` returns an Outcome: the cross-entropy of the margin logits of `net`.

    images: float32 (B, 3, H, W) in [-1, 1]. labels: int64 (B,), or IGNORE. lam: (B,) of mixup (see nets/head.py), or
    None. targets: what `targets` returned. net: another network to use, such as the averaged one.
    """

    def __init__(self, net):
        super().__init__()
        self.net = net

    def targets(self, indices):
        """Return what else is known of the images of these indices: nothing."""

    def forward(self, images, labels, lam=None, targets=None, net=None):
        net = net or self.net
        embeddings = net.arcface(images)
        losses, correct = net.head.losses(embeddings, labels, lam)
        return Outcome(losses.sum() / (labels != IGNORE).sum().clamp_min(1), correct, embeddings.detach())
