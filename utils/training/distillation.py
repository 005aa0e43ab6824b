"""Distillation: the student learns the embedding that a teacher gives each training image (arXiv 1503.02531).

Teachers embed every training image once, before training starts, so a step costs no teacher. Unlike in Beyer et al.
(CVPR 2022, arXiv 2106.05237), where the teacher sees the augmented image, the target of an image is always the same.
"""
import hashlib
from contextlib import suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from utils.common import distributed
from utils.common.device import send
from utils.common.errors import UserError
from utils.common.files import hash_file
from utils.data.dataset import FaceDataset
from utils.evaluation.embedding import check_embeddings, embed_batch, inference_copy
from utils.training.losses import LabelLoss, Outcome
from utils.weights import checkpoint

SAMPLE = 10_000  # images from which the projection of the targets is computed


class DistillationLoss(nn.Module):
    """`loss(images, labels, lam, targets)` returns an Outcome, like LabelLoss.

    The loss is 1 - cosine to the target + label_weight * cross-entropy of the margin logits, both means over all
    images. table: (N, T), of teacher_embeddings(). The buffer `projection` (T, D) brings its rows to the student's
    embedding size; it is saved in last.pt.
    """

    def __init__(self, net, projection, table, label_weight=0.0):
        super().__init__()
        self.net, self.table, self.label_weight = net, table, label_weight
        self.register_buffer("projection", projection)

    def targets(self, indices):
        """Return the teachers' embeddings (B, T) of images, by their indices in the whole training set."""
        return send(self.table[indices], self.projection.device)

    def forward(self, images, labels, lam=None, targets=None, net=None):
        """net: another network of the same kind, such as the averaged one; None is the one to train."""
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
        return Outcome(loss, correct, embeddings.detach())


def make_loss(args, net, images, labels, device):
    """Return the loss that the flags ask for: LabelLoss, or DistillationLoss with the targets of --teacher.

    images, labels: of the whole TrainingSet. If the student starts from weights, the targets are rotated onto its
    embeddings; a resumed run takes their projection from last.pt.
    """
    if not args.teacher:
        return LabelLoss(net)
    dataset = FaceDataset(images, labels, torch.arange(len(labels)), args.input_shape, args.letterbox_image)
    table = teacher_embeddings(args.teacher, dataset, args.teacher_flip, args.save_dir, device)
    from_weights = (args.model_path or args.pretrained) and args.resume is None
    projection = fit_projection(table, net.embedding_size, dataset, inference_copy(net) if from_weights else None)
    return DistillationLoss(net, projection.to(device), table, args.label_weight)


def teacher_embeddings(paths, dataset, flip, folder, device):
    """Return the embeddings of several teachers side by side, each of length 1: float16 (N, T), on the CPU.

    paths: weight files, `.onnx` models too. dataset: the FaceDataset of all N images, before the validation split.
    flip: average each embedding with that of the horizontally flipped image. Each teacher's embeddings are kept in
    `folder`, in a file named by the hashes of the teacher and of the images, and read from there if it exists. Every
    rank embeds its part of the images.
    """
    images_sha256, tables = hash_images(dataset), []
    for path in paths:
        key = repr((hash_file(path), images_sha256, flip, tuple(dataset.input_shape), dataset.letterbox))
        file = Path(folder, f"teacher_{hashlib.sha256(key.encode()).hexdigest()[:16]}.pth")
        if not all(distributed.gather(file.is_file())):
            teacher = inference_copy(checkpoint.load_embedder(path)).to(device)
            part = range(distributed.rank(), len(dataset), distributed.world_size())
            parts = distributed.gather(embed_dataset(teacher, dataset, part, flip).half())
            table = torch.empty(len(dataset), parts[0].shape[1], dtype=torch.float16)
            for rank, rows in enumerate(parts):
                table[rank::distributed.world_size()] = rows
            if distributed.is_main():
                checkpoint.save({"embeddings": table}, file)
        else:
            table = checkpoint.load(file)["embeddings"]
            print(f"{path}: its embeddings of {len(dataset)} images are read from {file}")
        tables.append(table)
    return torch.cat(tables, 1)


def hash_images(dataset):
    """Return the SHA-256 of the files of a FaceDataset. One that cannot be read counts as an empty file."""
    digest = hashlib.sha256()
    for index in range(len(dataset.images)):
        content = b""
        with suppress(OSError, UserError):
            source = dataset.images[index]
            content = source.getvalue() if hasattr(source, "getvalue") else Path(source).read_bytes()
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def embed_dataset(net, dataset, indices, flip=False):
    """Return the embeddings of the images of these indices, float32 (len(indices), D), on the CPU."""
    loader = DataLoader(Subset(dataset, indices), batch_size=64, num_workers=2)
    embeddings = []
    for images, _, _ in tqdm(loader, desc="embedding for distillation", unit="batch", disable=None):
        embeddings.append(embed_batch(net, images, flip))
        check_embeddings(embeddings[-1], images)
    return torch.cat(embeddings)


def fit_projection(table, size, dataset, student=None):
    """Return the matrix (T, size) that brings the rows of `table` (N, T) to the student's embedding size.

    Larger targets are reduced by PCA without centering, smaller ones are padded with zeros. If `student`, an
    inference copy, starts from trained weights, the targets are then rotated onto its embeddings (orthogonal
    Procrustes): the cosines between targets stay the same, and training starts near them.
    """
    indices = torch.linspace(0, len(table) - 1, min(SAMPLE, len(table))).long()
    rows = table[indices].float()
    if rows.shape[1] > size:
        matrix = torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -size:]  # eigenvalues ascend
    else:
        matrix = torch.eye(rows.shape[1], size)
    if student is not None:
        left, _, right = torch.linalg.svd((rows @ matrix).T @ embed_dataset(student, dataset, indices.tolist()))
        matrix = matrix @ left @ right
    return matrix
