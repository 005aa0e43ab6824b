"""The heads: an angular margin on the target's logit, and the loss that training uses."""
import math

import torch
import torch.nn.functional as F
from torch import nn

from nets.partial_fc import UNSHARDED, init_rows
from nets.softmax import SoftmaxTerms, float32_products

IGNORE = -1  # the label of an unlabeled image, which only `losses` accepts


class MarginHead(nn.Module):
    """`head(embeddings, labels)` returns scaled margin logits (B, out_features), float32.

    Training does not call it: it calls `losses`, which gives the cross-entropy of the same logits in a third of their
    memory. `forward` is the textbook version for users and tests.

    logits = s * cos(theta) between the embedding and each class's row of `weight`, except the target's, which is
    s * margin(cos(theta), norm). A head is a class that defines `margin`; nets/arcface.py lists them by name.

    embeddings: (B, in_features), of any length. labels: int64 (B,).
    s: scale. It has to be smaller for fewer dimensions (32 for 128, 64 for 512), because the cosines of random
    vectors have a standard deviation of 1/sqrt(in_features).
    m: margin, in radians if it is an angle, 0 <= m < pi.
    easy_margin: apply the margin only if cos(theta) > 0.
    shard: the classes that this rank holds; `forward` needs an unsharded head.
    """

    def __init__(self, in_features, out_features, s, m, easy_margin=False, shard=UNSHARDED):
        super().__init__()
        self.s, self.m, self.easy_margin = s, m, easy_margin
        self.classes, self.shard = out_features, shard
        self.weight = nn.Parameter(init_rows(out_features, in_features, *shard.bounds(out_features)))
        self.sample = None  # ascending rows that `weight` holds inside sampled_head (nets/partial_fc.py)

    def margin(self, cosine, norm):
        """Return what replaces the targets' cosines, differentiable.

        cosine: cos(theta), float32 (B, K), for K targets of each image. norm: (B, 1), the length of the embeddings
        before normalisation. Both have a gradient in training.
        """
        raise NotImplementedError

    def forward(self, embeddings, labels):
        """Raises ValueError for a label outside 0..out_features-1."""
        self.check_labels(labels)
        with float32_products(embeddings.device):
            embeddings, norm = self.normalize(embeddings)
            cosine = F.linear(embeddings, F.normalize(self.weight))
            target = cosine.gather(1, labels[:, None])
            # Only the B target entries change, so the margin costs B numbers and no one-hot matrix.
            return (cosine * self.s).scatter_(1, labels[:, None], self.add_margin(target, norm) * self.s)

    def losses(self, embeddings, labels, lam=None):
        """Return (losses (B,), correct float (B,)) of each image, both 0 for unlabeled ones.

        losses: the cross-entropy of the logits. correct: 1 if the target's cosine, without margin, is the largest.
        lam: (B,) of mixup, or None. Then the loss of image i is lam * loss(label i) + (1 - lam) * loss(label i-1). The
        second term is 0 if image i-1 is unlabeled.
        One backward pass: another one, or a gradient of the gradient, raises RuntimeError.
        """
        if labels.is_cpu:  # on a device the check would wait for it
            self.check_labels(labels[labels != IGNORE])
        targets = labels[:, None] if lam is None else torch.stack([labels, labels.roll(1)], 1)
        target_rows = self.rows_of(self.shard.gather(targets).flatten(0, 1))
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings, norm = self.normalize(embeddings)
            cosine, lse_negatives, max_negative = SoftmaxTerms.apply(
                embeddings, self.weight, target_rows, self.s, self.shard, torch.is_grad_enabled())
            logit, margin_logit = cosine * self.s, self.add_margin(cosine, norm) * self.s
            known, lse_negatives = targets != IGNORE, lse_negatives[:, None]
            if lam is not None:
                # For each target the other one is a negative too, unless both are the same class.
                same = targets[:, :1] == targets[:, 1:]
                other = logit.flip(1).masked_fill(same | ~known.flip(1), torch.finfo(logit.dtype).min)
                max_negative = torch.maximum(max_negative, other[:, 0])
                lse_negatives = torch.logaddexp(lse_negatives, other)
            # log(1 + exp(x)): linear beyond 60, exact even in float64.
            losses, known = F.softplus(lse_negatives - margin_logit, threshold=60).where(known, 0), known[:, 0]
            loss = losses[:, 0] if lam is None else lam * losses[:, 0] + (1 - lam) * losses[:, 1]
            return loss.where(known, 0), ((logit[:, 0] > max_negative) & known).float()

    def normalize(self, embeddings):
        """Return the embeddings with length 1, in the dtype of `weight`, and their lengths (B, 1) before."""
        embeddings = embeddings.to(self.weight.dtype)
        norm = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
        return embeddings / norm.clamp_min(1e-12), norm

    def rows_of(self, labels):
        """Return the rows of `weight` for labels of any shape, -1 for classes that are not in it."""
        first, end = self.shard.bounds(self.classes)
        rows, count = labels - first, end - first
        present = (rows >= 0) & (rows < count)
        if self.sample is not None and count:
            index = torch.searchsorted(self.sample, rows).clamp_max(len(self.sample) - 1)
            present, rows = present & (self.sample[index] == rows), index
        return torch.where(present, rows, -1)

    def add_margin(self, cosine, norm):
        """Return `margin`; with easy_margin, cosines that are not positive stay as they are."""
        shifted = self.margin(cosine, norm)
        return torch.where(cosine > 0, shifted, cosine) if self.easy_margin else shifted

    def check_labels(self, labels):
        invalid = labels[(labels < 0) | (labels >= self.classes)]
        if len(invalid):
            raise ValueError(f"label {invalid[0]} is not in 0..{self.classes - 1}: the head has {self.classes} classes")


class ArcMarginProduct(MarginHead):
    """ArcFace: an additive angular margin (Deng et al., CVPR 2019, arXiv 1801.07698).

    The target's logit is s * cos(theta + m) (equation 3) while theta + m <= pi. Beyond pi the cosine would rise
    again, so there it is s * (cos(theta) - m sin(m)), as in the published code.
    """

    def margin(self, cosine, norm):
        """Return cos(theta + m), with the exact gradient cos(m) + sin(m) cos(theta) / sin(theta).

        (1 - c)(1 + c) keeps the digits that 1 - c*c loses near theta = 0. clamp_min keeps the gradient
        finite if float32 cannot distinguish theta from 0.
        """
        sine = ((1 - cosine) * (1 + cosine)).clamp_min(1e-12).sqrt()
        shifted = cosine * math.cos(self.m) - sine * math.sin(self.m)
        return torch.where(cosine >= -math.cos(self.m), shifted, cosine - self.m * math.sin(self.m))
