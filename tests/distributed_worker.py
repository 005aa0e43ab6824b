"""Run by tests/test_distributed.py under torchrun, or alone: steps on a fixed global batch, saved for comparison.

    distributed_worker.py OUTPUT

The first step has BatchNorm in eval mode, where its figures do not depend on how the batch is shared out; a second
one has it in training mode.
"""
import hashlib
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from train import make_parser
from utils import distributed
from utils.dataset import EpochBatches
from utils.engine import train_one_step
from utils.setup import make_net, make_training

PICTURES = 16


class Pictures:
    paths = [f"picture {i}" for i in range(PICTURES)]


def main(output):
    device = distributed.start(torch.device("cpu"))
    settings = make_parser().parse_args(["--batch-size", "8", "--epochs", "1", "--accumulate", "2"])
    batches = EpochBatches(PICTURES, settings.batch_size, settings.seed)
    net = make_net(settings, 4, device)
    training = make_training(net, batches, settings, device)
    training.model.eval()
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (PICTURES, 112, 112, 3), dtype=torch.uint8, generator=generator)
    group = [(pixels[indices], torch.tensor(indices) % 4, torch.tensor(indices)) for indices in batches]
    loss, correct = train_one_step(training, group, Pictures)
    loss, correct = distributed.reduce([loss / distributed.world_size(), correct], device)
    flat = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    training.model.train()
    train_one_step(training, group, Pictures)
    hashes = distributed.gather(hashlib.sha256(torch.cat(
        [p.detach().flatten() for p in net.parameters()]).numpy().tobytes()).hexdigest())
    if distributed.is_main():
        torch.save({"loss": loss, "correct": correct, "gradient": flat, "hashes": hashes}, output)
    distributed.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
