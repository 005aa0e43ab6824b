"""Augmentation of a whole batch, on the device of the network."""
import math

import torch
import torch.nn.functional as F

from utils.common import distributed
from utils.common.device import send
from utils.data.dataset import mix_seeds
from utils.faces.images import normalise

# Largest changes. Shifts are in half widths of the image, brightness in half ranges, erased sides in whole ones.
ROTATION, SCALE, SHIFT = math.radians(10), 0.1, 0.1
CONTRAST, BRIGHTNESS, SATURATION = 0.25, 0.2, 0.5
ERASED = 0.4
MAX_DRAWS = 5  # the most random numbers that one kind draws for an image


def augment(images, seed, epoch, batch, kinds=()):
    """Normalise and augment a batch. Return (float32 (B, 3, H, W) in [-1, 1], lam (B,) or None).

    images: uint8 (B, H, W, 3). Each is flipped horizontally with probability 1/2. kinds: names of KINDS, applied in
    this order, mixup last. "mixup" (Zhang et al. 2018, arXiv 1710.09412) blends half of the images with the one
    before them in the batch: image i is lam * itself + (1 - lam) * image i-1, lam in 0.5 to 1.

    What happens to image i of the global batch depends on (seed, epoch, batch, i) alone, not on the number of workers
    or ranks, nor on interruptions. Only mixup stays within the batch of its rank.
    """
    # All numbers are drawn at once on the CPU and sent to the device in one copy.
    generator = torch.Generator().manual_seed(mix_seeds(seed, epoch, batch))
    numbers = torch.rand(1 + MAX_DRAWS * len(kinds), distributed.world_size(), len(images), generator=generator)
    numbers = iter(send(numbers[:, distributed.rank()], images.device))

    def draw(low, high):
        """Return a uniform random number for each image, float32 (B,)."""
        return low + (high - low) * next(numbers)

    images = normalise(images)
    images = torch.where(draw(0, 1)[:, None, None, None] < 0.5, images.flip(3), images)
    for kind in kinds:
        if kind != "mixup":
            images = KINDS[kind](images, draw)
    return mixup(images, draw) if "mixup" in kinds else (images, None)


def affine(images, draw):
    """Rotate, scale and shift, with reflection at the edges."""
    angle, scale = draw(-ROTATION, ROTATION), 1 + draw(-SCALE, SCALE)
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    rows = (cosine, -sine, draw(-SHIFT, SHIFT)), (sine, cosine, draw(-SHIFT, SHIFT))
    grid = F.affine_grid(torch.stack([torch.stack(row, 1) for row in rows], 1), images.shape, align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def color(images, draw):
    """Change saturation, contrast and brightness."""
    saturation, contrast, brightness = (draw(-limit, limit)[:, None, None, None]
                                        for limit in (SATURATION, CONTRAST, BRIGHTNESS))
    gray = images.mean(1, keepdim=True)
    return ((gray + (images - gray) * (1 + saturation)) * (1 + contrast) + brightness).clamp(-1, 1)


def erase(images, draw):
    """Fill a rectangle with gray in half of the images (Zhong et al. 2020, arXiv 1708.04896)."""
    chosen = draw(0, 1) < 0.5
    inside = chosen[:, None, None].expand(-1, *images.shape[2:])
    for dimension in (1, 2):
        size = images.shape[dimension + 1]
        length = draw(0, ERASED) * size
        first = draw(0, 1) * (size - length)
        position = torch.arange(size, device=images.device)
        within = (position >= first[:, None]) & (position < (first + length)[:, None])
        inside = inside & within.unsqueeze(3 - dimension)
    return images.masked_fill(inside[:, None], 0)


def mixup(images, draw):
    lam = torch.where(draw(0, 1) < 0.5, draw(0.5, 1), torch.ones(len(images), device=images.device))
    weight = lam[:, None, None, None]
    return images * weight + images.roll(1, 0) * (1 - weight), lam


KINDS = {"affine": affine, "color": color, "erase": erase, "mixup": mixup}
