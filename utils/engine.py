"""One epoch of training, and one of validation."""
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from nets.arcface import ArcfaceNet
from utils.augmentation import augment
from utils.images import normalise


@dataclass
class Training:
    """What a training step reads and changes."""
    net: ArcfaceNet
    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[int], float]  # step -> learning rate
    device: torch.device
    seed: int
    autocast_dtype: torch.dtype | None     # None: float32
    scaler: torch.amp.GradScaler
    step: int = 0                          # optimizer steps taken since the start of the run
    epoch: int = 0                         # the epoch that runs, from 0
    batch: int = 0                         # batches taken of that epoch
    sums: dict = field(default_factory=dict)  # of that epoch: see new_sums

    def autocast(self):
        return torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None)


def new_sums():
    return {"images": 0, "loss": 0.0, "correct": 0, "seconds": 0.0, "waiting": 0.0}


def train_one_epoch(training, loader, report):
    """Train on what is left of the epoch. -> the epoch's means, as epoch_means gives them.

    loader: a DataLoader over EpochBatches. report: called after each step with the means so far.
    """
    loader.batch_sampler.epoch, loader.batch_sampler.start = training.epoch, training.batch
    training.net.train()
    sums = training.sums = training.sums or new_sums()
    start = time.perf_counter()
    for images, labels, _ in loader:
        waited = time.perf_counter() - start
        loss, correct = train_one_batch(training, images.to(training.device, non_blocking=True),
                                        labels.to(training.device, non_blocking=True))
        training.batch += 1
        now = time.perf_counter()
        for name, value in (("images", len(images)), ("loss", loss * len(images)), ("correct", correct),
                            ("seconds", now - start), ("waiting", waited)):
            sums[name] += value
        start = now
        report(epoch_means(sums))
    return epoch_means(sums)


def train_one_batch(training, images, labels):
    """One optimizer step on uint8 images (B, H, W, 3). -> (loss, number of correct predictions without the margin)."""
    images = augment(images, training.seed, training.epoch, training.batch)
    for group in training.optimizer.param_groups:
        group["lr"] = training.learning_rate(training.step)
    with training.autocast():
        logits = training.net(images, labels)
    loss = F.cross_entropy(logits, labels)
    training.optimizer.zero_grad(set_to_none=True)
    training.scaler.scale(loss).backward()
    training.scaler.step(training.optimizer)
    training.scaler.update()
    training.step += 1
    return loss.item(), training.net.head.correct(logits, labels).sum().item()


def epoch_means(sums):
    """-> loss, accuracy (without the margin), img/s and the share of time spent waiting for data."""
    return {"loss": sums["loss"] / sums["images"], "accuracy": sums["correct"] / sums["images"],
            "images_per_second": sums["images"] / sums["seconds"], "waiting": sums["waiting"] / sums["seconds"]}


@torch.inference_mode()
def validate(training, loader):
    """-> {"loss", "accuracy"} on a validation loader, without augmentation and, for accuracy, without the margin."""
    training.net.eval()
    loss, correct, count = 0.0, 0, 0
    for images, labels, _ in loader:
        images, labels = normalise(images.to(training.device)), labels.to(training.device)
        with training.autocast():
            logits = training.net(images, labels)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += training.net.head.correct(logits, labels).sum().item()
        count += len(labels)
    return {"loss": loss / count, "accuracy": correct / count}
