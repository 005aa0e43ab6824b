"""What training minimises on a batch: the loss of its labels, the distance to a teacher's embeddings, or both."""
import torch
import torch.nn.functional as F
from torch import nn

from utils.common.device import send
from utils.data.dataset import FaceDataset
from utils.evaluation.embedding import inference_copy
from utils.training.distillation import fit_projection, teacher_embeddings


class LabelLoss(nn.Module):
    """`loss(images, labels, lam, targets)` returns (loss, correct): the cross-entropy of the margin logits of `net`.

    loss: scalar, with gradient. correct: float (B,), 1 if the target's cosine, without margin, is the largest, and 0
    for unlabeled images; NaN if labels are not learned.
    images: float32 (B, 3, H, W) in [-1, 1]. labels: int64 (B,). lam: (B,) of mixup (see nets/head.py), or
    None. targets: what `targets` returned. net: another network to use, such as the averaged one.
    """

    def __init__(self, net):
        super().__init__()
        self.net = net

    def targets(self, indices):
        """Return the teachers' embeddings of the images with these indices; None without a teacher."""

    def forward(self, images, labels, lam=None, targets=None, net=None):
        net = net or self.net
        losses, correct = net.head.losses(net.arcface(images), labels, lam)
        return losses.mean(), correct


class DistillationLoss(LabelLoss):
    """1 - cosine to the target + label_weight * cross-entropy of the margin logits, both means over all images.

    table: (N, T), of teacher_embeddings(). The buffer `projection` (T, D) brings its rows to the student's embedding
    size; it is saved in last.pt.
    """

    def __init__(self, net, projection, table, label_weight=0.0):
        super().__init__(net)
        self.table, self.label_weight = table, label_weight
        self.register_buffer("projection", projection)

    def targets(self, indices):
        """Return the teachers' embeddings (B, T) of images, by their indices in the whole training set."""
        return send(self.table[indices], self.projection.device)

    def forward(self, images, labels, lam=None, targets=None, net=None):
        net = net or self.net
        embeddings = net.arcface(images)
        with torch.autocast(images.device.type, enabled=False):
            targets = targets.float() @ self.projection
            if lam is not None:  # mixup blends targets as it blends images
                targets = lam[:, None] * targets + (1 - lam)[:, None] * targets.roll(1, 0)
            loss = (1 - F.cosine_similarity(embeddings.float(), targets)).mean()
        correct = torch.full_like(labels, torch.nan, dtype=torch.float32)
        if self.label_weight:
            losses, correct = net.head.losses(embeddings, labels, lam)
            loss = loss + self.label_weight * losses.mean()
        return loss, correct


def make_loss(args, net, images, labels, device):
    """Return LabelLoss, or DistillationLoss with the targets of --teacher. images, labels: of the training set."""
    if not args.teacher:
        return LabelLoss(net)
    dataset = FaceDataset(images, labels, range(len(labels)), args.input_shape)
    table = teacher_embeddings(args.teacher, dataset, args.teacher_flip, args.save_dir, device)
    from_weights = (args.model_path or args.pretrained) and args.resume is None  # last.pt has the projection
    projection = fit_projection(table, net.embedding_size, dataset, inference_copy(net) if from_weights else None)
    return DistillationLoss(net, projection.to(device), table, args.label_weight)
