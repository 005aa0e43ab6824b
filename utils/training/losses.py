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
    None. targets: those of `targets`, here None; a teacher's loss has others.
    """

    def __init__(self, net):
        super().__init__()
        self.net = net

    def targets(self, indices):
        """Return what the images of these indices are to be compared with, apart from their labels: nothing."""

    def forward(self, images, labels, lam=None, targets=None, net=None):
        """net: another network of the same kind, such as the averaged one; None is the one to train."""
        net = net or self.net
        embeddings = net.arcface(images)
        losses, correct = net.head.losses(embeddings, labels, lam)
        return Outcome(losses.sum() / (labels != IGNORE).sum().clamp_min(1), correct, embeddings.detach())
