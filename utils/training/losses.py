"""What a network is trained on: the loss of a batch."""
from typing import NamedTuple

import torch
from torch import nn

from nets.head import IGNORE


class Outcome(NamedTuple):
    loss: torch.Tensor        # scalar, with gradient
    correct: torch.Tensor     # (B,) float: 1 where the target's plain cosine is the largest; NaN without labels
    embeddings: torch.Tensor  # (B, D), detached


class LabelLoss(nn.Module):
    """`loss(images, labels, share)` -> Outcome: the cross-entropy of the ArcFace logits of `net`.

    images: float32 (B, 3, H, W) in [-1, 1]; labels: int64 (B,); share: what mixup left of each picture, (B,) or None.
    `maps` and `apart` are Distillation's: what is learned beside the network, and whether stages learn apart.
    """

    def __init__(self, net):
        super().__init__()
        self.net, self.maps, self.apart = net, nn.ModuleList(), False
        self.leaves_parameters_out = False  # whether there are steps whose loss does not depend on all parameters

    def compiled_modules(self):
        """What torch.compile speeds up."""
        return [self.net.arcface]

    def forward(self, images, labels, share=None):
        return self.evaluate(self.net, images, labels, share)

    def evaluate(self, net, images, labels, share=None):
        """The loss of another network of the same kind, such as the averaged one."""
        embeddings = net(images)
        losses, correct = label_losses(net.head, embeddings, labels, share)
        return Outcome(losses.sum() / (labels != IGNORE).sum().clamp_min(1), correct, embeddings.detach())


def label_losses(head, embeddings, labels, share=None):
    """-> (cross-entropy (B,), correct (B,) float), both 0 where the label is IGNORE.

    With mixup both people in a picture count by their shares.
    """
    losses, correct = head.losses(embeddings, labels, share)
    known = labels != IGNORE
    return losses.where(known, 0), (correct & known).float()
