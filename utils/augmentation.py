"""Augmentation of a whole batch, on the device that the network runs on."""
import torch

from utils import distributed
from utils.dataset import mix_seeds
from utils.images import normalise


def augment(images, seed, epoch, batch):
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1], every second one mirrored at random.

    What happens to picture i of the global batch depends on (seed, epoch, batch, i) alone: neither the
    number of workers or processes nor an interruption changes it. Heavier augmentation measurably hurts
    MobileFaceNet.
    """
    generator = torch.Generator().manual_seed(mix_seeds(seed, epoch, batch))
    mirrored = torch.rand(distributed.world_size(), len(images), generator=generator)[distributed.rank()] < 0.5
    images = normalise(images)
    return torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(3), images)
