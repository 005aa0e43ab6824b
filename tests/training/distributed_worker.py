"""Run by test_distributed.py under torchrun, or alone: steps on a fixed global batch, saved for comparison.

    distributed_worker.py OUTPUT TEACHER

The first step has BatchNorm in eval mode, where its figures do not depend on how the batch is shared out; a second
one has it in training mode. Then a student takes a step with its stages apart and one end to end. At last the
network of the last process breaks.
"""
import hashlib
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from train import check_settings, make_parser
from utils.common import distributed
from utils.data.dataset import EpochBatches
from utils.training.engine import Diverged, enter_training_mode, train_one_step
from utils.training.setup import make_net, make_training

PICTURES = 16


class Pictures:
    @staticmethod
    def name(number):
        return f"picture {number}"


def parse(*arguments):
    parser = make_parser()
    settings = parser.parse_args(["--batch-size", "8", "--epochs", "2", "--accumulate", "2", *arguments])
    check_settings(settings, parser)
    return settings


def hashes_of_all(tensors):
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    return distributed.gather(hashlib.sha256(flat.numpy().tobytes()).hexdigest())


def teach(teacher, batches, group, device):
    """-> the hashes of a student's parameters after a step with its stages apart and one end to end."""
    settings = parse("--teacher", teacher, "--hint-weight", "0.5", "--hint-epochs", "1", "--label-weight", "0.1")
    net = make_net(settings, 4, device)
    training = make_training(net, batches, settings, device)
    training.model.train()
    for apart in (True, False):
        train_one_step(training, group, Pictures)
        assert training.objective.apart == apart
    return hashes_of_all(net.parameters())


def freeze(training):
    """-> the hashes of BatchNorm's statistics after a step in training mode, and once they are to stay as they are."""
    learned = hashes_of_all(training.net.buffers())
    training.freeze_bn_from = 0
    enter_training_mode(training)
    return [learned, hashes_of_all(training.net.buffers())]


def diverge(training, group):
    """-> the facts of a step in which the last process alone has a loss that is not finite."""
    if distributed.rank() == distributed.world_size() - 1:
        training.net.arcface.last_bn.bias.data[0] = torch.nan
    try:
        train_one_step(training, group, Pictures)
    except Diverged as error:
        return error.facts


def main(output, teacher):
    device = distributed.start(torch.device("cpu"))
    settings = parse()
    batches = EpochBatches(PICTURES, settings.batch_size, settings.seed)
    net = make_net(settings, 4, device)
    training = make_training(net, batches, settings, device)
    training.model.eval()
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (PICTURES, 112, 112, 3), dtype=torch.uint8, generator=generator)
    group = [(pixels[indices], torch.tensor(indices) % 4, torch.tensor(indices)) for indices in batches]
    loss, correct = train_one_step(training, group, Pictures)
    loss, correct = distributed.reduce([loss / distributed.world_size(), correct])
    flat = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    training.model.train()
    train_one_step(training, group, Pictures)
    result = {"loss": loss, "correct": correct, "gradient": flat, "hashes": hashes_of_all(net.parameters()),
              "statistics": freeze(training),
              "student": teach(teacher, batches, group, device), "facts": diverge(training, group),
              "pictures": distributed.gather([Pictures.name(i) for _, _, indices in group for i in indices])}
    if distributed.is_main():
        torch.save(result, output)
    distributed.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
