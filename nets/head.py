"""The heads: an angular margin on the target logit, and what training asks of a head beside its logits."""
import math

import torch
import torch.nn.functional as F
from torch import nn

from nets.partial_fc import WHOLE, draw_rows
from nets.softmax import ClassSums, float32_products

IGNORE = -1  # the label, in `losses` alone, of a picture whose person is not known


class MarginHead(nn.Module):
    """Embeddings (B, in_features) and labels (B,) -> scaled logits (B, out_features), float32.

    `losses` is what training uses: the same without the logits, in a third of their memory.

    logits = s * cos(theta) between the embedding and each identity's row of `weight`, except the target's, which is
    s * margin(cos(theta)). A head is a class that defines `margin`; it is chosen by its name in nets/arcface.py.

    s: scale, the radius of the sphere; the smaller the embedding, the smaller s has to be (32 for 128
    dimensions, 64 for 512), because random cosines spread by 1/sqrt(in_features).
    m: margin, in radians where it is an angle, 0 <= m < pi.
    easy_margin: no margin where cos(theta) <= 0.
    shard: the part of the classes whose rows this process has; with less than all of them only `losses` works.
    After a forward pass `target_cosine` (B, 1) holds the targets' cosines before the margin: what accuracy
    has to be judged on.
    """

    def __init__(self, in_features, out_features, s, m, easy_margin=False, shard=WHOLE):
        super().__init__()
        if not 0 < s < math.inf or not 0 <= m < math.pi:
            raise ValueError(f"the scale s must be positive and the margin m in [0, pi): s={s}, m={m}")
        self.s, self.m, self.easy_margin = s, m, easy_margin
        self.classes, self.shard = out_features, shard
        self.weight = nn.Parameter(draw_rows(out_features, in_features, *shard.bounds(out_features)))
        self.sample = None  # (rows,), ascending: which of its rows `weight` holds while nets/partial_fc.py lets it
        self.target_cosine = None

    def margin(self, cosine):
        """The targets' cos(theta), float32 of any shape -> what stands in its place, differentiable."""
        raise NotImplementedError

    def forward(self, embeddings, labels):
        """Raises ValueError for a label outside 0..out_features-1."""
        self.check_labels(labels)
        with float32_products(embeddings.device):
            cosine = F.linear(F.normalize(embeddings.to(self.weight.dtype)), F.normalize(self.weight))
            target = cosine.gather(1, labels[:, None])
            self.target_cosine = target.detach()
            # Only the B target entries change, so the margin costs B numbers and no one-hot matrix.
            return (cosine * self.s).scatter_(1, labels[:, None], self.add_margin(target) * self.s)

    def losses(self, embeddings, labels, share=None):
        """-> (losses (B,), correct (B,) bool) of each picture: the cross-entropy of its logits, and `correct`.

        share: what mixup left of each picture, (B,); the rest of it is the picture before, and counts for that one's
        label, unless it is IGNORE. A picture labelled IGNORE has a loss of no meaning. The logits are those of
        `forward`, but for what a sum of C numbers is rounded to. One backward pass: another one, or a gradient of the
        gradient, raises RuntimeError.
        """
        if labels.is_cpu:  # elsewhere it would wait for the device
            self.check_labels_or_nobody(labels)
        targets = labels[:, None] if share is None else torch.stack([labels, labels.roll(1)], 1)
        columns = self.columns(self.shard.gather(targets).flatten(0, 1))
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = F.normalize(embeddings.to(self.weight.dtype))
            cosine, rest, largest = ClassSums.apply(embeddings, self.weight, columns, self.s, self.shard,
                                                    torch.is_grad_enabled())
            plain, shifted = cosine * self.s, self.add_margin(cosine) * self.s
            if share is None:
                return logistic_loss(shifted[:, 0] - rest), plain[:, 0] > largest
            # In the loss of either target the other one is a class like all the rest, unless both are of one person.
            same, known = targets[:, :1] == targets[:, 1:], targets != IGNORE
            other = plain.flip(1).masked_fill(same | ~known.flip(1), torch.finfo(plain.dtype).min)
            losses = logistic_loss(shifted - torch.logaddexp(rest[:, None], other)).where(known, 0)
            return (share * losses[:, 0] + (1 - share) * losses[:, 1],
                    plain[:, 0] > torch.maximum(largest, other[:, 0]))

    def columns(self, targets):
        """Classes, of any shape -> the rows of `weight` that are theirs, -1 where it has none."""
        first, last = self.shard.bounds(self.classes)
        rows, count = targets - first, last - first
        here = (rows >= 0) & (rows < count)
        if self.sample is not None and count:
            places = torch.searchsorted(self.sample, rows).clamp_max(len(self.sample) - 1)
            here, rows = here & (self.sample[places] == rows), places
        return torch.where(here, rows, -1)

    def add_margin(self, cosine):
        """`margin`, but with easy_margin only where cos(theta) > 0."""
        return torch.where(cosine > 0, self.margin(cosine), cosine) if self.easy_margin else self.margin(cosine)

    def check_labels(self, labels):
        if len(labels) and (labels.min() < 0 or labels.max() >= self.classes):
            wrong = labels[(labels < 0) | (labels >= self.classes)][0].item()
            raise ValueError(f"label {wrong} is outside 0..{self.classes - 1}: the head has {self.classes} classes")

    def check_labels_or_nobody(self, labels):
        self.check_labels(labels.where(labels != IGNORE, 0))

    def correct(self, logits, labels):
        """Of the last forward pass: (B,) bool, whether the target's plain cosine beats every other class."""
        others = logits.detach().scatter(1, labels[:, None], -torch.inf).amax(1)
        return self.target_cosine[:, 0] * self.s > others

    def expected_initial_loss(self):
        """The cross-entropy before anything is learned, when every cosine is N(0, 1/in_features).

        log(C) for the guess, s^2 / 2d for the spread of the C exponentials, and the margin's share, taken at the mean
        cosine of either side of a right angle. With ArcFace that share is about s sin(m): 28.6 in all for s=32,
        d=128, C=10575. A loss of 44 at the start of iResNet-50 on CASIA is right.
        """
        dimensions = self.weight.shape[1]
        side = math.sqrt(2 / (math.pi * dimensions))
        cosine = torch.tensor([side, -side])
        shift = (self.add_margin(cosine) - cosine).mean().item()
        return math.log(self.classes) + self.s ** 2 / (2 * dimensions) - self.s * shift


def logistic_loss(lead):
    """log(1 + exp(-lead)): the cross-entropy of a target whose logit is ahead of the sum of the others by `lead`."""
    return F.softplus(-lead, threshold=60)  # beyond it the loss is linear to the last digit even of float64


class ArcMarginProduct(MarginHead):
    """ArcFace: an additive angular margin (Deng et al., CVPR 2019, arXiv 1801.07698).

    The target's logit is s * cos(theta + m) (equation 3) while theta + m <= pi. Beyond pi the cosine would rise
    again, so there it is s * (cos(theta) - m sin(m)), as in the published code.
    """

    def margin(self, cosine):
        """cos(theta) -> cos(theta + m), with the exact gradient cos(m) + sin(m) cos(theta) / sin(theta).

        (1 - c)(1 + c) keeps the digits that 1 - c*c loses near theta = 0. The floor stops the gradient only
        where float32 cannot tell theta from 0, and there keeps it finite.
        """
        sine = ((1 - cosine) * (1 + cosine)).clamp_min(1e-12).sqrt()
        shifted = cosine * math.cos(self.m) - sine * math.sin(self.m)
        return torch.where(cosine >= -math.cos(self.m), shifted, cosine - self.m * math.sin(self.m))
