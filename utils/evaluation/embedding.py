"""Pictures to embeddings, fast."""
import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch.fx.experimental.optimization import fuse

from nets.depthwise import DepthwiseConv2d
from utils.common.errors import UserError
from utils.faces.images import normalise, preprocess

# Pictures per forward pass on a CPU: few, so that they stay in its cache. MobileFaceNet, img/s on 2 cores by number:
#                    1    4    8   16   32   64
# AMD EPYC, Zen 4  160  280  293  270  240  232
# Intel Xeon       167  298  351  380  373  366
CPU_BATCH = 16


# Two pictures that differ by more than LIKE of 255 a pixel, on average, have embeddings further apart than EQUAL.
LIKE, EQUAL = 1, 1e-6


class UselessEmbeddings(UserError):
    """The network is to blame, and no picture."""


def inference_copy(net):
    """A copy of an ArcfaceNet for evaluation: no head, BatchNorm folded into the layer before, channels last.

    The embeddings differ from the original's by float32 rounding (below 1e-6).
    """
    fast = copy.copy(net)
    fast._modules = {"arcface": fold_batch_norm(net.arcface).to(memory_format=torch.channels_last)}
    return fast


def fold_batch_norm(module):
    """-> a copy of a network or a part of one, in eval mode, with BatchNorm folded into the layer before."""
    module = copy.deepcopy(module).eval()
    for layer in module.modules():
        if isinstance(layer, DepthwiseConv2d):
            layer.__class__ = torch.nn.Conv2d  # fuse() knows no classes that derive from it
    return fuse(module, inplace=True)


def embed(net, sources, settings, progress=None, crop=None):
    """Pictures (anything open_image takes) -> L2-normalised embeddings (N, D), float32 on the CPU.

    net: ArcfaceNet in eval mode; its device is used.
    settings: has input_shape, letterbox_image, batch_size, num_workers (threads that decode), flip: add the
    embedding of the mirrored picture, and bf16: run in bfloat16 (cosine to the float32 embedding: above 0.999).
    progress: wraps the batches, called as progress(iterable, total=count), such as tqdm.
    crop: from a source to the picture of a face that is preprocessed, such as FaceCrop; called in those threads.
    Raises UserError for a picture that does not open, and UselessEmbeddings as check_embeddings() does.
    """
    batches = [sources[start:start + settings.batch_size] for start in range(0, len(sources), settings.batch_size)]
    decoded = decode_ahead(batches, settings, crop)
    if progress is not None:
        decoded = progress(decoded, total=len(batches))
    embeddings = []
    for images in decoded:
        embeddings.append(embed_batch(net, images, settings.flip, settings.bf16))
        check_embeddings(embeddings[-1], images)
    return torch.cat(embeddings)


def check_embeddings(embeddings, images):
    """Raises UselessEmbeddings where one of (B, D) is not finite, or the same for two unlike images (B, H, W, 3).

    Neighbours are compared: a network that tells no pictures apart gives them all one embedding.
    """
    finite = embeddings.isfinite().all(1)
    if not finite.all():
        raise UselessEmbeddings(f"these weights give {(~finite).sum()} of {len(finite)} pictures an embedding that is "
                                "not finite: use others, they are damaged or training went wrong")
    equal = (embeddings[1:] - embeddings[:-1]).abs().amax(1) < EQUAL
    for place in equal.nonzero().flatten().tolist():
        if (images[place].float() - images[place + 1]).abs().mean() > LIKE:
            raise UselessEmbeddings("these weights give every picture the same embedding: use others, they are damaged "
                                    "or training went wrong")


@torch.inference_mode()
def embed_batch(net, images, flip=False, bf16=False):
    """uint8 (B, H, W, 3) -> L2-normalised embeddings (B, D), float32 on the CPU."""
    device = next(net.parameters()).device
    embeddings = []
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for part in images.split(CPU_BATCH if device.type == "cpu" else len(images)):
            part = normalise(part.to(device, non_blocking=True))
            sums = net(part)
            if flip:
                sums = F.normalize(sums + net(part.flip(3)))
            embeddings.append(sums.cpu())
    return torch.cat(embeddings)


def decode_ahead(batches, settings, crop=None):
    """Yield each batch as a uint8 tensor (B, H, W, 3) while threads decode the next one."""
    def decode(source):
        return preprocess(crop(source) if crop else source, settings.input_shape, settings.letterbox_image)

    with ThreadPoolExecutor(max(1, settings.num_workers)) as pool:
        ahead = []
        for batch in [*batches, []]:
            ready, ahead = ahead, [pool.submit(decode, source) for source in batch]
            if ready:
                yield torch.from_numpy(np.stack([future.result() for future in ready]))
