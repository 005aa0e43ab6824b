"""Embed images with a network in inference mode."""
import copy
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import torch
import torch.nn.functional as F
from torch.fx.experimental.optimization import fuse

from nets.mobilenet import DepthwiseConv2d
from utils.common.errors import UserError
from utils.faces.images import normalise, preprocess

# Images per forward pass on a CPU: few, so that they stay in its cache. MobileFaceNet on 2 cores of an AMD EPYC: 160
# img/s one by one, 270 by 16, 232 by 64.
CPU_BATCH = 16

# Two images that differ by more than SIMILAR of 255 a pixel, on average, have embeddings further apart than EQUAL.
SIMILAR, EQUAL = 1, 1e-6


class InvalidEmbeddings(UserError):
    """The embeddings are invalid because of the weights, not because of an image."""


def inference_copy(net):
    """Return a copy of an ArcfaceNet for evaluation: no head, BatchNorm folded into the layer before, channels last.

    The embeddings differ from the original's by float32 rounding (below 1e-6). A backbone that torch.fx cannot trace,
    such as one with data-dependent control flow, is copied without folding. An OnnxModel is returned as it is.
    """
    if not hasattr(net, "arcface"):
        return net
    backbone = copy.deepcopy(net.arcface).eval()
    for layer in backbone.modules():
        if isinstance(layer, DepthwiseConv2d):
            layer.__class__ = torch.nn.Conv2d  # fuse() knows no subclasses
    with suppress(Exception):  # tracing runs the backbone's own code on symbols, which may raise anything
        backbone = fuse(backbone)
    fast = copy.copy(net)
    fast._modules = {"arcface": backbone.to(memory_format=torch.channels_last)}
    return fast


def embed_images(net, sources, input_shape=(112, 112), letterbox=True, batch_size=256, workers=4, flip=False,
                 bf16=False, crop=None, progress=None):
    """Return the L2-normalised embeddings (N, D), float32 on the CPU, of images (anything open_image takes).

    net: ArcfaceNet in eval mode, whose device is used, or an OnnxModel.
    workers: threads that decode.
    flip: add the embedding of the horizontally flipped image.
    bf16: run in bfloat16 (cosine to the float32 embedding: above 0.999).
    crop: called in those threads, from a source to the image of a face.
    progress: called as progress(iterable of batches, total=count), such as tqdm.
    Raises UserError for an image that does not open, and InvalidEmbeddings as check_embeddings does.
    """
    def decode(source):
        return preprocess(crop(source) if crop else source, input_shape, letterbox)

    batches = [sources[start:start + batch_size] for start in range(0, len(sources), batch_size)]
    decoded = decode_ahead(batches, decode, workers)
    weights = f"the weights {net.path}" if hasattr(net, "path") else "these weights"
    embeddings = []
    for images in progress(decoded, total=len(batches)) if progress else decoded:
        embeddings.append(embed_batch(net, images, flip, bf16))
        check_embeddings(embeddings[-1], images, weights)
    return torch.cat(embeddings)


def decode_ahead(batches, decode, workers):
    """Yield each batch as a uint8 tensor (B, H, W, 3) while threads decode the next one."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        ahead = []
        for batch in [*batches, []]:
            ready, ahead = ahead, [pool.submit(decode, source) for source in batch]
            if ready:
                yield torch.from_numpy(np.stack([future.result() for future in ready]))


@torch.inference_mode()
def embed_batch(net, images, flip=False, bf16=False):
    """Return the L2-normalised embeddings (B, D), float32 on the CPU, of uint8 images (B, H, W, 3)."""
    device = next(net.parameters(), torch.empty(0)).device  # an OnnxModel has no parameters
    embeddings = []
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for part in images.split(CPU_BATCH if device.type == "cpu" else len(images)):
            part = normalise(part.to(device, non_blocking=True))
            sums = net(part)
            if flip:
                sums = F.normalize(sums + net(part.flip(3)))
            embeddings.append(sums.cpu())
    return torch.cat(embeddings)


def check_embeddings(embeddings, images, weights="these weights"):
    """Raise InvalidEmbeddings if one of (B, D) is not finite, or the same for two different images (B, H, W, 3).

    Only neighbours are compared: a collapsed network gives all images one embedding.
    """
    finite = embeddings.isfinite().all(1)
    if not finite.all():
        raise InvalidEmbeddings(f"{weights} give {(~finite).sum()} of {len(finite)} images an embedding that is "
                                "not finite: use others, they are damaged or training went wrong")
    equal = (embeddings[1:] - embeddings[:-1]).abs().amax(1) < EQUAL
    for index in equal.nonzero().flatten().tolist():
        if (images[index].float() - images[index + 1]).abs().mean() > SIMILAR:
            raise InvalidEmbeddings(f"{weights} give every image the same embedding: use others, they are damaged or "
                                    "training went wrong")
