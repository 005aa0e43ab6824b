"""Augmentation of a whole batch, on the device that the network runs on."""
import math

import torch
import torch.nn.functional as F

from utils.common import distributed
from utils.common.device import send
from utils.data.dataset import mix_seeds
from utils.faces.images import normalise

ROTATION, SCALE, SHIFT = math.radians(10), 0.1, 0.1     # at most; the shift in halves of the picture
CONTRAST, BRIGHTNESS, SATURATION = 0.25, 0.2, 0.5       # at most; the brightness in halves of the range
ERASED = 0.4                                            # at most, of a side
MOST_DRAWS = 5                                          # of one kind


def augment(images, seed, epoch, batch, kinds=()):
    """uint8 (B, H, W, 3) -> (float32 (B, 3, H, W) in [-1, 1], share (B,) or None).

    A picture is mirrored with probability 1/2; heavier kinds, see KINDS, work on every picture, in the order given.
    "mixup" (Zhang et al. 2018, arXiv 1710.09412) blends half of the pictures with the one before them in the
    batch; `share`, 0.5 to 1, is then what is left of each picture itself.

    What happens to picture i of the global batch depends on (seed, epoch, batch, i) alone: neither the number
    of workers or processes nor an interruption changes it (but mixup blends within one process's share).
    """
    draw = Draw(mix_seeds(seed, epoch, batch), 1 + MOST_DRAWS * len(kinds), len(images), images.device)
    images = normalise(images)
    images = torch.where(draw(0, 1)[:, None, None, None] < 0.5, images.flip(3), images)
    for kind in kinds:
        if kind != "mixup":
            images = KINDS[kind](images, draw)
    return mixup(images, draw) if "mixup" in kinds else (images, None)


class Draw:
    """`draw(lowest, highest)`, up to `most` times -> a uniform random number for each picture, float32 (B,).

    All are drawn at first, on the CPU, and go to the device in one copy.
    """

    def __init__(self, seed, most, count, device):
        generator = torch.Generator().manual_seed(seed)
        numbers = torch.rand(most, distributed.world_size(), count, generator=generator)[:, distributed.rank()]
        self.numbers = iter(send(numbers, device))

    def __call__(self, lowest, highest):
        return lowest + (highest - lowest) * next(self.numbers)


def affine(images, draw):
    """Rotate, scale and shift; the picture is reflected at its edges."""
    angle, scale = draw(-ROTATION, ROTATION), 1 + draw(-SCALE, SCALE)
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    rows = (cosine, -sine, draw(-SHIFT, SHIFT)), (sine, cosine, draw(-SHIFT, SHIFT))
    grid = F.affine_grid(torch.stack([torch.stack(row, 1) for row in rows], 1), images.shape, align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def color(images, draw):
    """Change saturation, contrast and brightness."""
    saturation, contrast, brightness = (draw(-most, most)[:, None, None, None]
                                        for most in (SATURATION, CONTRAST, BRIGHTNESS))
    grey = images.mean(1, keepdim=True)
    return ((grey + (images - grey) * (1 + saturation)) * (1 + contrast) + brightness).clamp(-1, 1)


def erase(images, draw):
    """Grey out a rectangle in half of the pictures (Zhong et al. 2020, arXiv 1708.04896)."""
    chosen = draw(0, 1) < 0.5
    inside = chosen[:, None, None].expand(-1, *images.shape[2:])
    for dimension in (1, 2):
        size = images.shape[dimension + 1]
        length = draw(0, ERASED) * size
        first = draw(0, 1) * (size - length)
        place = torch.arange(size, device=images.device)
        within = (place >= first[:, None]) & (place < (first + length)[:, None])
        inside = inside & within.unsqueeze(3 - dimension)
    return images.masked_fill(inside[:, None], 0)


def mixup(images, draw):
    share = torch.where(draw(0, 1) < 0.5, draw(0.5, 1), torch.ones(len(images), device=images.device))
    weight = share[:, None, None, None]
    return images * weight + images.roll(1, 0) * (1 - weight), share


KINDS = {"affine": affine, "color": color, "erase": erase, "mixup": mixup}
