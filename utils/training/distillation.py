"""The targets of distillation: the embedding that a teacher gives each training image (arXiv 1503.02531).

Teachers embed every training image once, before training starts, so a step costs no teacher. The target of an image is
always the same. In Beyer et al. (CVPR 2022, arXiv 2106.05237) the teacher sees the augmented image instead.
"""
import hashlib
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from nets.partial_fc import Shard
from utils.common import distributed
from utils.common.errors import UserError
from utils.common.files import hash_file
from utils.evaluation.embedding import embed_images, inference_copy
from utils.weights import checkpoint

SAMPLE = 10_000  # images from which the projection of the targets is computed


def teacher_embeddings(paths, dataset, flip, folder, device):
    """Return the embeddings of several teachers side by side, each of length 1: float16 (N, T), on the CPU.

    paths: weight files, `.onnx` models too. dataset: the FaceDataset of all N images, before the validation split.
    flip: average each embedding with that of the horizontally flipped image. Each teacher's embeddings are kept in
    `folder`, in a file named by the hashes of the teacher and of the images. Every rank embeds its part of the images.
    """
    part, tables = range(*Shard(distributed.rank(), distributed.world_size()).bounds(len(dataset))), []
    contents_sha256 = hashlib.sha256(b"".join(distributed.gather(hash_images(dataset.images, part)))).hexdigest()
    for path in paths:
        key = repr((hash_file(path), contents_sha256, flip, tuple(dataset.input_shape)))
        file = Path(folder, f"teacher_{hashlib.sha256(key.encode()).hexdigest()[:16]}.pth")
        if all(distributed.gather(file.is_file())):
            print(f"{path}: its embeddings of {len(dataset)} images are read from {file}")
            tables.append(checkpoint.load(file)["embeddings"])
            continue
        teacher = inference_copy(checkpoint.load_embedder(path)).to(device)
        tables.append(torch.cat(distributed.gather(embed_dataset(teacher, dataset, part, flip).half())))
        if distributed.is_main():
            checkpoint.save({"embeddings": tables[-1]}, file)
    return torch.cat(tables, 1)


def hash_images(images, indices):
    """Return the SHA-256 of the content of each of these images, 32 bytes each, one after another."""
    hashes = bytearray()
    for index in indices:
        try:
            source = images[index]
            content = source.getvalue() if hasattr(source, "getvalue") else Path(source).read_bytes()
        except (OSError, UserError):  # FaceDataset takes the next image
            content = b""
        hashes += hashlib.sha256(content).digest()
    return bytes(hashes)


def embed_dataset(net, dataset, indices, flip=False):
    """Return the embeddings of the images of these indices, float32 (len(indices), D), on the CPU."""
    progress = partial(tqdm, desc="embedding for distillation", unit="batch", disable=None)
    return embed_images(net, indices, dataset.input_shape, crop=lambda index: dataset[index][0].numpy(), flip=flip,
                        progress=progress)


def fit_projection(table, size, dataset, student=None):
    """Return the matrix (T, size) that brings the rows of `table` (N, T) to the student's embedding size.

    Larger targets are reduced by PCA without centering, smaller ones are padded with zeros. If `student`, an
    inference copy, starts from trained weights, the targets are then rotated onto its embeddings (orthogonal
    Procrustes): the cosines between targets stay the same, and training starts near them.
    """
    indices = torch.linspace(0, len(table) - 1, min(SAMPLE, len(table)), dtype=torch.float64).long()
    rows = table[indices].float()
    if rows.shape[1] > size:
        matrix = torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -size:]  # eigenvalues ascend
    else:
        matrix = torch.eye(rows.shape[1], size)
    if student is not None:
        left, _, right = torch.linalg.svd((rows @ matrix).T @ embed_dataset(student, dataset, indices.tolist()))
        matrix = matrix @ left @ right
    return matrix
