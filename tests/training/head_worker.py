"""Run by test_sharded_head.py: 1, 2, 3 and 4 gloo processes that train one head, in float64, saved for comparison.

    head_worker.py FOLDER

All are forked from this process, which has imported everything once and computed nothing.
"""
import os
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch._dynamo  # 2 s, which each process would take at its first optimizer
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[2]))
from nets.arcface import BACKBONES, Backbone
from nets.head import ArcMarginProduct
from nets.partial_fc import Shard
from train import check_settings, make_parser, weights_to_save
from utils.common import distributed
from utils.data.dataset import EpochBatches
from utils.training import checkpoint as resume
from utils.training.checkpoint import whole_weight
from utils.training.engine import train_one_step
from utils.training.optim import LossScale, clip_gradients
from utils.training.setup import make_net, make_training
from utils.training.validation import validate

PICTURES, BATCH, PEOPLE = 48, 12, 301
CPU = torch.device("cpu")


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Linear(48, 16)

    def forward(self, images):
        return self.features(F.adaptive_avg_pool2d(images, 4).flatten(1).double())


BACKBONES["tiny"] = Backbone(Tiny, 16, 64.0, "features", False)


class Faces:
    """As much of a FaceDataset, and of a loader over this process's share of it, as validation looks at."""
    input_shape, batch_size = (112, 112), 4
    paths = [f"picture {number}" for number in range(PICTURES)]

    def __init__(self, pixels, labels):
        self.pixels, self.labels, self.dataset = pixels, labels, self

    def __len__(self):
        return len(self.labels)

    def __iter__(self):
        numbers = torch.arange(len(self))
        return iter([(self.pixels[part], self.labels[part], part) for part in numbers.split(self.batch_size)])


def make(*arguments):
    """-> (training, its settings) of train.py with these flags and the tiny backbone, in float64."""
    parser = make_parser()
    settings = parser.parse_args(["--backbone", "mobilefacenet", "--batch-size", str(BATCH), "--epochs", "3",
                                  "--accumulate", "2", "--ema", "0.9", "--grad-clip", "5", "--init-lr", "0.05",
                                  "--warmup-epochs", "0", *arguments])
    check_settings(settings, parser)
    settings.backbone = "tiny"
    net = make_net(settings, PEOPLE, CPU).double()
    return make_training(net, EpochBatches(PICTURES, BATCH, 1), settings, CPU), settings


def pictures():
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (PICTURES, 112, 112, 3), dtype=torch.uint8, generator=generator)
    return pixels, torch.randint(0, PEOPLE, (PICTURES,), generator=generator)


def train(training, steps):
    """-> [(mean loss, number correct)] of steps of two batches each, over all processes."""
    pixels, labels = pictures()
    batches, results = EpochBatches(PICTURES, BATCH, 1), []
    for step in range(training.step, training.step + steps):
        numbers = [torch.tensor(batches.indices_of((2 * step + half) % 4)) for half in range(2)]
        training.batch = 2 * step
        loss, correct = train_one_step(training, [(pixels[one], labels[one], one) for one in numbers], Faces)
        results.append(distributed.reduce([loss / distributed.world_size(), correct]))
    return results


def result_of(training, settings, losses):
    weights = weights_to_save(training, settings)
    return {"losses": losses, "weights": weights, "head": whole_weight(training.net.head),
            "body": training.net.arcface.state_dict()}


def train_and_validate(folder):
    training, settings = make("--shard-head")
    first = whole_weight(training.net.head)
    first = None if first is None else first.clone()
    losses = train(training, 3)
    pixels, labels = pictures()
    mine = slice(distributed.rank(), 13, distributed.world_size())
    validated = validate(training, Faces(pixels[mine], labels[mine]))
    return result_of(training, settings, losses) | {"validated": validated, "first": first}


def resumed(folder, steps):
    """Steps of a run whose state is in `folder`, where it has begun, and which is saved there."""
    training, settings = make("--shard-head")
    run = SimpleNamespace(folder=folder, rows=[])
    if (folder / "last.pt").exists():
        resume.restore(training, run, resume.read_checkpoint(folder / "last.pt"), "", False)
    losses = train(training, steps)
    resume.save_checkpoint(training, run, vars(settings), "")
    return result_of(training, settings, losses)


def sampled(rate):
    """-> what a step of --sample-rate leaves of the head's weight and of its momentum."""
    training, settings = make("--shard-head", "--sample-rate", str(rate))
    before = whole_weight(training.net.head)
    before = None if before is None else before.clone()
    losses = train(training, 1)
    moved = training.optimizer.state[training.net.head.weight]["momentum_buffer"].ne(0).any(1)
    return result_of(training, settings, losses) | {"before": before, "moved": distributed.gather(moved.tolist()),
                                                    "labels": pictures()[1]}


def overflow():
    """-> what all processes know of a step in which the last one's part of the head has an infinite gradient."""
    training, _ = make("--shard-head")
    training.scale = LossScale(True, 1024.0)
    if distributed.rank() == distributed.world_size() - 1:
        training.net.head.weight.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    before = [parameter.detach().clone() for parameter in training.net.parameters()]
    train(training, 1)
    same = all(map(torch.equal, before, training.net.parameters()))
    return distributed.gather([training.step, same, training.scale.value, training.average.n_averaged.item()])


def by_logits(head, embeddings, labels, share):
    """The loss of each picture as cross-entropy of logits of all classes, and what is correct."""
    logits = head(embeddings, labels)
    correct, losses = head.correct(logits, labels), F.cross_entropy(logits, labels, reduction="none")
    if share is not None:
        # Mixup blends within a process.
        others = torch.cat([part.roll(1) for part in labels.split(len(labels) // distributed.world_size())])
        other = F.cross_entropy(head(embeddings, others), others, reduction="none")
        losses = share * losses + (1 - share) * other
    return losses, correct


def errors_of_one_batch(people, pictures, mixup):
    """-> the relative errors of loss, gradients and their norm against one process's, and how many `correct` differ."""
    torch.manual_seed(5)
    processes, rank = distributed.world_size(), distributed.rank()
    shard = Shard(rank, processes)
    whole, body = ArcMarginProduct(8, people, 64.0, 0.5).double(), nn.Linear(24, 8).double()
    inputs, labels = torch.randn(processes * pictures, 24).double(), torch.randint(0, people, (processes * pictures,))
    share = torch.rand(processes * pictures).double() if mixup else None
    if pictures > 1:
        with torch.no_grad():  # one picture on its person's axis, one opposite it
            whole.weight[labels[0]] = body(inputs[0])
            whole.weight[labels[-1]] = -body(inputs[-1])
    losses, right = by_logits(whole, body(inputs), labels, share)
    expected = losses.mean()
    right_gradients = torch.autograd.grad(expected, [whole.weight, body.weight])
    first, last = shard.bounds(people)
    head = ArcMarginProduct(8, people, 64.0, 0.5, shard=shard).double()
    head.weight.data.copy_(whole.weight[first:last])
    own = slice(rank * pictures, (rank + 1) * pictures)
    model = DistributedDataParallel(body)
    losses, correct = head.losses(model(inputs[own]), labels[own], share[own] if mixup else None)
    losses.mean().backward()
    body.bias.grad = None
    norm = clip_gradients([*body.parameters(), head.weight], head, 0)
    expected_norm = torch.stack([gradient.square().sum() for gradient in right_gradients]).sum().sqrt()
    mean, = distributed.reduce([losses.mean().item() / processes])
    errors = [abs(mean / expected.item() - 1), relative(head.weight.grad, right_gradients[0][first:last]),
              relative(body.weight.grad, right_gradients[1]), relative(norm, expected_norm),
              (correct != right[own]).sum().item()]
    return distributed.reduce(errors, largest=True)


def relative(found, expected):
    return ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-300)).item() if expected.numel() else 0.0


def work(folder, processes):
    results = {"trained": train_and_validate(folder)}
    if processes > 1:
        results["batches"] = {
            str(case): errors_of_one_batch(*case)
            for case in ((101, 6, False), (101, 6, True), (7, 1, False), (3, 5, False), (3, 5, True))}
        results["overflow"] = overflow()
    results["sampled"] = sampled(0.5)
    return results


def in_processes(folder, name, processes, function, *arguments):
    """Fork them, wait, and let rank 0 save what function(*arguments) gives as FOLDER/NAME.pt."""
    pids = []
    for rank in range(processes):
        pid = os.fork()
        if pid == 0:
            try:
                torch.set_num_threads(1)
                if processes > 1:
                    store = dist.FileStore(str(folder / f"{name}.store"), processes)
                    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)
                result = function(*arguments)
                if rank == 0:
                    torch.save(result, folder / f"{name}.pt")
                distributed.stop()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        pids.append(pid)
    failed = [pid for pid in pids if os.waitpid(pid, 0)[1]]
    if failed:
        raise SystemExit(f"{len(failed)} of {processes} processes failed: {name}")


def main(folder):
    folder = Path(folder)
    np.random.seed(0)
    for processes in (1, 2, 3, 4):
        in_processes(folder, str(processes), processes, work, folder, processes)
    for processes, steps in ((2, 1), (3, 1), (1, 1)):
        in_processes(folder, f"resumed{processes}", processes, resumed, folder, steps)


if __name__ == "__main__":
    main(*sys.argv[1:])
