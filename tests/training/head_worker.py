"""Run by test_sharded_head.py: 1, 2, 3 and 4 gloo ranks that train one head, in float64, saved for comparison.

    head_worker.py FOLDER

All ranks are forked from this process, which has imported everything once and computed nothing.
"""
import os
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

import torch
import torch._dynamo  # else each rank would import it for its optimizer, which takes 2 s
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))
from training_data import FakeDataset, FakeLoader, NormMargin, by_logits, make_args

from nets.arcface import BACKBONES, HEADS, Backbone
from nets.head import ArcMarginProduct
from nets.partial_fc import Shard
from train import train_step
from utils.common import distributed
from utils.data.dataset import EpochBatches
from utils.training.checkpoint import read_checkpoint, save_checkpoint
from utils.training.losses import LabelLoss
from utils.training.optim import LossScale, clip_gradients
from utils.training.state import TrainState, make_net
from utils.training.validation import validate

IMAGES, BATCH, CLASSES = 48, 12, 301
CPU = torch.device("cpu")


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Linear(48, 16)

    def forward(self, images):
        return self.features(F.adaptive_avg_pool2d(images, 4).flatten(1).double())


BACKBONES["tiny"] = Backbone(Tiny, 16, 64.0, "features", False)
HEADS["norm"] = NormMargin


def make(*flags):
    """Return the TrainState for these flags with the tiny backbone, in float64, and the settings."""
    args = make_args("--batch-size", BATCH, "--epochs", 3, "--accumulate", 2, "--ema", 0.9, "--grad-clip", 5,
                     "--init-lr", 0.05, *flags)
    args.backbone = "tiny"
    net = make_net(args, CLASSES, CPU).double()
    return TrainState(args, net, LabelLoss(net), EpochBatches(IMAGES, BATCH, 1), CPU), args


def noise():
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (IMAGES, 112, 112, 3), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, CLASSES, (IMAGES,), generator=generator)


def take_steps(state, args, steps):
    """Return [(mean loss, number correct)] of steps of two batches each, over all ranks."""
    images, labels = noise()
    batches, results = list(EpochBatches(IMAGES, BATCH, 1)), []
    for step in range(state.step, state.step + steps):
        parts = [torch.tensor(batches[(2 * step + half) % 4]) for half in range(2)]
        state.batch = 2 * step
        loss, correct = train_step(state, [(images[part], labels[part], part) for part in parts], args)
        results.append(distributed.reduce([loss / distributed.world_size(), correct]))
    return results


def full_head(state):
    rows = state.net.head.shard.collect_rows(state.net.head.weight.detach())
    return None if rows is None else rows.clone()


def result_of(state, args, losses):
    """Return the losses and the weights, those of the network and those of its average."""
    return {"losses": losses, "weights": state.exported_weights(args), "head": full_head(state),
            "body": state.net.arcface.state_dict()}


def train_and_validate(*flags):
    state, args = make("--shard-head", *flags)
    first = full_head(state)
    losses = take_steps(state, args, 3)
    images, labels = noise()
    own = slice(distributed.rank(), 12, distributed.world_size())
    loader = FakeLoader((images[own][part], labels[own][part], part)
                        for part in torch.arange(len(labels[own])).split(4))
    loader.dataset = FakeDataset(labels[own])
    validated = validate(state, loader)
    return result_of(state, args, losses) | {"validated": validated, "first": first}


def resumed(folder, steps):
    """Take steps of a run whose last.pt is in `folder`, if it has begun, and save it there."""
    state, args = make("--shard-head")
    if (folder / "last.pt").exists():
        state.load_state_dict(read_checkpoint(folder / "last.pt"))
    losses = take_steps(state, args, steps)
    save_checkpoint(state, SimpleNamespace(folder=folder, rows=[]), args)
    return result_of(state, args, losses)


def sampled(rate):
    """Return what a step of --sample-rate leaves of the head's weight and momentum, and the labels of all ranks."""
    state, args = make("--shard-head", "--sample-rate", rate)
    before = full_head(state)
    losses = take_steps(state, args, 1)
    moved = state.optimizer.state[state.net.head.weight]["momentum_buffer"].ne(0).any(1)
    labels = noise()[1][torch.tensor(list(EpochBatches(IMAGES, BATCH, 1))[:2]).flatten()]
    return result_of(state, args, losses) | {"before": before, "moved": distributed.gather(moved.tolist()),
                                             "labels": distributed.gather(labels.tolist())}


def overflow():
    """Return the state of all ranks after a step in which the last rank's part of the head has an infinite gradient."""
    state, args = make("--shard-head")
    state.loss_scale = LossScale(True, 1024.0)
    if distributed.rank() == distributed.world_size() - 1:
        state.net.head.weight.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    before = [parameter.detach().clone() for parameter in state.net.parameters()]
    take_steps(state, args, 1)
    same = all(map(torch.equal, before, state.net.parameters()))
    return distributed.gather([state.step, same, state.loss_scale.value, state.ema.updates])


def errors_of_one_batch(classes, images, mixup):
    """Return the relative errors of loss, gradients and norm against one rank's, and how many `correct` differ."""
    torch.manual_seed(5)
    ranks, rank = distributed.world_size(), distributed.rank()
    shard = Shard(rank, ranks)
    whole, body = ArcMarginProduct(8, classes, 64.0, 0.5).double(), nn.Linear(24, 8).double()
    inputs, labels = torch.randn(ranks * images, 24).double(), torch.randint(0, classes, (ranks * images,))
    lam = torch.rand(ranks * images).double() if mixup else None
    if images > 1:
        with torch.no_grad():  # one image on its class's axis, one opposite it
            whole.weight[labels[0]] = body(inputs[0])
            whole.weight[labels[-1]] = -body(inputs[-1])
    losses, right = by_logits(whole, body(inputs), labels, lam, ranks)
    expected = losses.mean()
    right_gradients = torch.autograd.grad(expected, [whole.weight, body.weight])
    first, last = shard.bounds(classes)
    head = ArcMarginProduct(8, classes, 64.0, 0.5, shard=shard).double()
    head.weight.data.copy_(whole.weight[first:last])
    own = slice(rank * images, (rank + 1) * images)
    model = DistributedDataParallel(body)
    losses, correct = head.losses(model(inputs[own]), labels[own], lam[own] if mixup else None)
    losses.mean().backward()
    body.bias.grad = None
    norm = clip_gradients([*body.parameters(), head.weight], head, 0)
    expected_norm = torch.stack([gradient.square().sum() for gradient in right_gradients]).sum().sqrt()
    mean, = distributed.reduce([losses.mean().item() / ranks])
    errors = [abs(mean / expected.item() - 1), relative(head.weight.grad, right_gradients[0][first:last]),
              relative(body.weight.grad, right_gradients[1]), relative(norm, expected_norm),
              (correct != right[own]).sum().item()]
    return distributed.reduce(errors, largest=True)


def relative(found, expected):
    return ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-300)).item() if expected.numel() else 0.0


def work(ranks):
    results = {"trained": train_and_validate(), "norm": train_and_validate("--head", "norm")}
    if ranks > 1:
        results["batches"] = {
            str(case): errors_of_one_batch(*case)
            for case in ((101, 6, False), (101, 6, True), (7, 1, False), (3, 5, False), (3, 5, True))}
        results["overflow"] = overflow()
    results["sampled"] = sampled(0.5)
    return results


def in_ranks(folder, name, ranks, function, *arguments):
    """Fork ranks, wait, and let rank 0 save what function(*arguments) returns as FOLDER/NAME.pt."""
    pids = []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            try:
                torch.set_num_threads(1)
                if ranks > 1:
                    store = dist.FileStore(str(folder / f"{name}.store"), ranks)
                    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
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
        raise SystemExit(f"{len(failed)} of {ranks} ranks failed: {name}")


def main(folder):
    folder = Path(folder)
    for ranks in (1, 2, 3, 4):
        in_ranks(folder, str(ranks), ranks, work, ranks)
    for ranks, steps in ((2, 1), (3, 1), (1, 1)):
        in_ranks(folder, f"resumed{ranks}", ranks, resumed, folder, steps)


if __name__ == "__main__":
    main(*sys.argv[1:])
