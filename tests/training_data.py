"""Settings, heads, annotation files and run folders for the tests of training."""
import sys
from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from nets.arcface import Backbone
from nets.head import MarginHead
from utils.data.dataset import EpochBatches
from utils.training.losses import LabelLoss
from utils.training.settings import check_args, make_parser
from utils.training.state import TrainState, make_net

ROOT = Path(__file__).parent.parent
QUICK = ["--device", "cpu", "--no-lfw-eval", "--no-compile", "--batch-size", "8", "--init-lr", "0.05"]


def make_args(*flags):
    """The settings of train.py with these flags. The defaults are a batch of 4 and 2 epochs."""
    parser = make_parser()
    args = parser.parse_args(["--batch-size", "4", "--epochs", "2", "--warmup-epochs", "0", *map(str, flags)])
    check_args(args, parser)
    args.images_sha256 = ""
    return args


def make_state(*flags, classes=4, count=8, device="cpu", loss=LabelLoss):
    """Return the TrainState for `count` images, and its settings. loss: makes the loss of a network."""
    args, device = make_args(*flags), torch.device(device)
    net = make_net(args, classes, device)
    state = TrainState(args, net, loss(net), EpochBatches(count, args.batch_size, 1), device)
    state.set_training_mode(freeze_bn=False)
    return state, args


def noise_batch(count=4, seed=1, labels=None):
    """A batch as a loader returns it: uint8 images, labels 0, 1, ..., indices."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 112, 112, 3), dtype=torch.uint8, generator=generator)
    return images, torch.arange(count) if labels is None else torch.tensor(labels), torch.arange(count)


class FakeLoader(list):
    """A list of batches with the attributes of a DataLoader over 8 images."""
    num_workers, batch_size = 0, 4

    def __init__(self, batches):
        super().__init__(batches)
        self.batch_sampler, self.dataset = EpochBatches(8, 4, 1), FakeDataset(range(8))


class FakeDataset(list):
    input_shape = (112, 112)


TINY = Backbone(lambda: nn.Sequential(OrderedDict(
    conv=nn.Conv2d(3, 8, 7, 4), norm=nn.BatchNorm2d(8), prelu=nn.PReLU(8), pool=nn.AdaptiveAvgPool2d(4),
    flatten=nn.Flatten(), dropout=nn.Dropout(), features=nn.Linear(128, 128))), 128, 64.0, "features", False)


class NormMargin(MarginHead):
    """A margin that depends on the embedding's length, with a gradient through it, as MagFace's does."""

    def margin(self, cosine, norm):
        return cosine - self.m * torch.tanh(norm)


def by_logits(head, embeddings, labels, lam=None, ranks=1):
    """Return what head.losses() has to return, by the logits of all classes and F.cross_entropy.

    With several ranks, mixup blends within the images of each.
    """
    cosine = F.normalize(embeddings) @ F.normalize(head.weight).T
    correct, losses = cosine.argmax(1) == labels, F.cross_entropy(head(embeddings, labels), labels, reduction="none")
    if lam is None:
        return losses, correct
    others = torch.cat([part.roll(1) for part in labels.chunk(ranks)])
    return lam * losses + (1 - lam) * F.cross_entropy(head(embeddings, others), others, reduction="none"), correct


def write_faces(shared, path, identities=4, images=10, skip=0):
    """Write an annotation of the first images of some identities of shared/faces_train. Return its path."""
    folders = sorted(shared.joinpath("faces_train").iterdir())
    folders = [folder for folder in folders if len(list(folder.iterdir())) >= images]
    lines = [f"{label};{image}" for label, folder in enumerate(folders[skip:skip + identities])
             for image in sorted(folder.iterdir())[:images]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def only_run(logs):
    """The folder of the one run in logs."""
    run, = (path for path in Path(logs).iterdir() if path.is_dir())
    return run


def weights(run):
    """The weights of a run's last epoch."""
    return torch.load(sorted(Path(run).glob("ep*.pth"))[-1], weights_only=True)


def assert_same_weights(first, second):
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, different


def train_command(*arguments):
    return [sys.executable, str(ROOT / "train.py"), *map(str, arguments)]
