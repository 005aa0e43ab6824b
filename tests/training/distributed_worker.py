"""Run by test_distributed.py: one and two gloo ranks take steps on a fixed global batch, saved as FOLDER/RANKS.pt.

    distributed_worker.py FOLDER

BatchNorm is in eval mode in the first step, because its values are then independent of the split of the batch, and in
training mode in the second. Then a student takes two steps.
"""
import hashlib
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))
from head_worker import in_ranks
from training_data import make_state

from train import train_step
from utils.common import distributed
from utils.data.dataset import EpochBatches
from utils.training.losses import DistillationLoss

IMAGES = 16


def make(*flags, **more):
    return make_state("--batch-size", 8, "--accumulate", 2, *flags, count=IMAGES, **more)


def hashes_of_all(tensors):
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    return distributed.gather(hashlib.sha256(flat.numpy().tobytes()).hexdigest())


def teach(group):
    """Return the hashes of a student's parameters after two steps, in which the head has no gradient."""
    table = torch.randn(IMAGES, 128, generator=torch.Generator().manual_seed(2))
    state, args = make("--teacher", __file__, loss=lambda net: DistillationLoss(net, torch.eye(128), table))
    for _ in range(2):
        train_step(state, group, args)
    return hashes_of_all(state.net.parameters())


def freeze(state):
    """Return the hashes of the running statistics after a step in training mode, and once they are frozen."""
    learned = hashes_of_all(state.net.buffers())
    state.set_training_mode(freeze_bn=True)
    return [learned, hashes_of_all(state.net.buffers())]


def work():
    state, args = make()
    state.wrapped_loss.eval()
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (IMAGES, 112, 112, 3), dtype=torch.uint8, generator=generator)
    group = [(images[indices], torch.tensor(indices) % 4, torch.tensor(indices))
             for indices in EpochBatches(IMAGES, 8, 1)]
    loss, correct = train_step(state, group, args)
    loss, correct = distributed.reduce([loss / distributed.world_size(), correct])
    flat = torch.cat([p.grad.flatten() for p in state.net.parameters() if p.grad is not None])
    state.wrapped_loss.train()
    train_step(state, group, args)
    return {"loss": loss, "correct": correct, "gradient": flat, "hashes": hashes_of_all(state.net.parameters()),
            "statistics": freeze(state), "student": teach(group)}


if __name__ == "__main__":
    for ranks in (1, 2):
        in_ranks(Path(sys.argv[1]), str(ranks), ranks, work)
