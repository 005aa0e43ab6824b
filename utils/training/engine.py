"""One epoch of training."""
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import nn

from nets.arcface import ArcfaceNet
from nets.head import IGNORE
from nets.partial_fc import sampled_head
from utils.common import distributed
from utils.common.device import send
from utils.common.errors import UserError
from utils.data.augmentation import augment
from utils.data.dataset import batches_of, mix_seeds
from utils.training.interrupt import StopRequest
from utils.training.optim import LossScale, Margin, MovingAverage, clip_gradients

CHECK_EVERY = 50  # steps between two looks for what is too slow to look for at each


@dataclass
class Training:
    """What a training step reads and changes."""
    net: ArcfaceNet
    objective: nn.Module                      # the loss of net: LabelLoss or Distillation
    model: nn.Module                          # objective, or DistributedDataParallel around it
    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[int], float]     # step -> learning rate
    margin: Margin                            # step -> the head's m
    device: torch.device
    seed: int
    accumulate: int                           # batches per optimizer step
    grad_clip: float                          # largest gradient norm; 0: no limit
    autocast_dtype: torch.dtype | None        # None: float32
    scale: LossScale                          # of fp16
    average: MovingAverage | None             # the moving average of the weights
    stop: StopRequest
    memory_format: torch.memory_format        # of the network and its images
    checkpoint_every: float                   # seconds; 0: at the end of each epoch only
    augmentations: tuple = ()                 # see utils/data/augmentation.py
    freeze_bn_from: float = math.inf          # the epoch, from 0, from which BatchNorm keeps its statistics
    hint_steps: int = 0                       # of the first steps, in which the student's stages learn apart
    sample_rate: float = 1.0                  # share of the head's rows in a step, see nets/partial_fc.py
    step: int = 0                             # optimizer steps taken since the start of the run
    epoch: int = 0                            # the epoch that runs, from 0
    batch: int = 0                            # batches taken of that epoch
    sums: dict = field(default_factory=dict)  # of that epoch, see new_sums

    def autocast(self):
        return torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None)

    @property
    def evaluated(self):
        """The network that is validated and saved: the averaged one where there is one."""
        return self.average.module if self.average else self.net


class Diverged(UserError):
    """A loss, a gradient or weights that are not finite; such a step is not taken, such weights are not saved.

    `facts`: step, epoch and learning rate, and what there is to know of the step.
    """

    def __init__(self, fault, facts):
        super().__init__(f"{fault} at step {facts['step']}, learning rate {facts['lr']:.3g}: lower --init-lr, or set "
                         "--grad-clip 5")
        self.facts = facts


class Interrupted(UserError):
    """What ended an epoch after its state was saved."""


def new_sums():
    return {"images": 0, "labelled": 0, "loss": 0.0, "correct": 0, "seconds": 0.0, "waiting": 0.0}


def train_one_epoch(training, loader, report, save):
    """Train on what is left of the epoch, or until a signal asks to stop: then the state is saved.

    loader: a DataLoader over EpochBatches. report: called after each step with the means of the epoch so far.
    save: called without arguments when a checkpoint is due.
    The sums are of this process's share alone.
    Raises Diverged, UserError for collapsed embeddings or a loss scale at its floor, and Interrupted for what keeps the
    next batch from coming; that and any other error come after save().
    """
    loader.batch_sampler.epoch, loader.batch_sampler.start = training.epoch, training.batch
    enter_training_mode(training)
    sums = training.sums = training.sums or new_sums()
    batches, left, steps = batches_of(loader), len(loader), 0
    saved = start = time.perf_counter()
    while True:
        group, fault = fetch(batches, min(training.accumulate, left))
        fetched = time.perf_counter()
        due = steps and training.checkpoint_every and fetched - saved > training.checkpoint_every
        signal, due, failed = distributed.reduce([training.stop.received, bool(due), fault is not None], largest=True)
        if signal or due or failed:
            save()
            saved = time.perf_counter()
        if failed:
            raise interruption(training, fault)
        if signal:
            training.stop.received = int(signal)
            return
        if not left:
            return
        begin = time.perf_counter()
        loss, correct = train_or_save(training, group, loader.dataset, save)
        training.batch, left, steps = training.batch + len(group), left - len(group), steps + 1
        now = time.perf_counter()
        labels = torch.cat([labels for _, labels, _ in group])
        for name, value in (("images", len(labels)), ("labelled", int((labels != IGNORE).sum())),
                            ("loss", loss * len(labels)), ("correct", correct),
                            ("seconds", fetched - start + now - begin), ("waiting", fetched - start)):
            sums[name] += value
        start = now
        report(epoch_means(sums))


def fetch(batches, count):
    """-> (the next batches as a list, None), or ([], the error that came instead)."""
    try:
        return list(islice(batches, count)), None
    except Exception as error:  # it is raised when the state is saved
        return [], error


def interruption(training, fault):
    """-> what to raise after saving. fault: the error of this process; None where another has one."""
    if fault is None or isinstance(fault, UserError):
        return Interrupted(f"{fault or 'another process has no next batch'}; the state after step {training.step} is "
                           "saved")
    return fault


def train_or_save(training, group, dataset, save):
    """train_one_step, whose errors, such as a device out of memory, come after save().

    Not a UserError, which says that the state is not worth keeping; and not with several processes, where the others
    cannot know of it. A step that is resumed after such an error is not bit-exact: BatchNorm has seen its pictures.
    """
    try:
        return train_one_step(training, group, dataset)
    except UserError:
        raise
    except Exception:
        if distributed.world_size() == 1:
            save()
        raise


def enter_training_mode(training):
    """Training mode, but for BatchNorm's statistics in the epochs in which they stay as they are: those of rank 0."""
    training.model.train()
    if training.epoch >= training.freeze_bn_from:
        distributed.copy_buffers_of_main(training.net)
        for module in training.net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def train_one_step(training, group, dataset):
    """One optimizer step on a list of batches. -> (mean loss, number of correct predictions without the margin).

    It waits for the device once, where read() does; tests/training/test_waits.py counts.
    """
    rate = training.learning_rate(training.step)
    for parameters in training.optimizer.param_groups:
        parameters["lr"] = rate
    training.net.head.m = training.margin(training.step)
    training.objective.apart = training.step < training.hint_steps
    training.optimizer.zero_grad(set_to_none=True)
    with sampled_head(training.net.head, training.optimizer, send(torch.cat([labels for _, labels, _ in group]),
                      training.device), training.sample_rate, mix_seeds(training.seed, training.step)):
        loss, correct, taken = take_step(training, group, dataset, rate)
    if taken:
        training.step += 1
        if training.average:
            training.average.update_parameters(training.net)
    return loss, correct


def take_step(training, group, dataset, rate):
    """-> loss and number correct as train_one_step, and whether the weights were moved."""
    outcomes = []
    for number, (images, labels, _) in enumerate(group):
        training.net.head.check_labels_or_nobody(labels)  # here, where they are on the CPU
        images, labels = send(images, training.device), send(labels, training.device)
        # Without this, DistributedDataParallel would average the gradients once a batch instead of once a step.
        training.model.require_backward_grad_sync = number == len(group) - 1
        images, share = augment(images, training.seed, training.epoch, training.batch + number, training.augmentations)
        outcomes.append(backward(training, images.contiguous(memory_format=training.memory_format), labels, share,
                                 weight=1 / len(group)))
    learned = list(training.model.parameters())
    training.scale.unscale_(learned)
    norm = clip_gradients(learned, training.net.head, training.grad_clip)
    loss, correct, norm, spread = read(torch.stack([outcome.loss for outcome in outcomes]).mean(),
                                       torch.stack([outcome.correct.sum() for outcome in outcomes]).sum(), norm,
                                       least_spread(outcomes) if training.step % CHECK_EVERY == 0 else None)
    check_finite(training, loss, norm, rate, group, dataset)
    check_collapse(training, spread)
    return loss, correct, update_weights(training, overflow=not math.isfinite(norm))


def read(*numbers):
    """Scalar tensors, or None -> floats, or None. All at once: a read waits until the device has computed them."""
    values = iter(torch.stack([number.detach() for number in numbers if number is not None]).tolist())
    return [None if number is None else next(values) for number in numbers]


def update_weights(training, overflow):
    """-> whether the step was taken: not where gradients overflow fp16, which lowers the loss scale instead.

    Raises UserError for a loss scale at its floor.
    """
    if not overflow:
        training.optimizer.step()
    training.scale.update(overflow)
    if training.scale.value < 1:
        raise UserError(f"the loss scale fell below 1 at step {training.step}: the gradients exceed fp16, go on with "
                        "--resume --no-fp16 --bf16 --force")
    return not overflow


def backward(training, images, labels, share, weight):
    """Forward and backward passes of one batch, its loss multiplied by `weight`. -> Outcome."""
    with training.autocast():
        outcome = training.model(images, labels, share)
    (outcome.loss * (weight * training.scale.value)).backward()
    return outcome._replace(loss=outcome.loss.detach())


def check_finite(training, loss, norm, rate, group, dataset):
    """Raises Diverged in every process when one has a loss or a gradient that is not finite.

    Infinite gradients are normal with a loss scale, which skips such a step; an infinite loss is not.
    """
    bad = [not math.isfinite(loss) or not (math.isfinite(norm) or training.scale.enabled)]
    # The gradient is that of all processes, and what spoils a loss spoils it too: only then do they ask each other. A
    # loss that is infinite with a finite gradient ends its process alone, and the launcher the others.
    together = not math.isfinite(norm)
    if any(distributed.reduce(bad) if together else bad):
        facts = {"step": training.step, "epoch": training.epoch + 1, "lr": rate, "loss": loss, "gradient_norm": norm,
                 "pictures": [dataset.name(i) for _, _, indices in group for i in indices]}
        facts = distributed.gather(facts) if together else [facts]
        # The loss that is not finite tells whose pictures are to blame.
        first = next((fact for fact in facts if not math.isfinite(fact["loss"])), facts[0])
        raise Diverged(f"the loss is {first['loss']} and the gradient norm {first['gradient_norm']}", first)


def least_spread(outcomes):
    """How far an embedding is from the first of its batch, in its largest component, in the batch of the least."""
    return torch.stack([(outcome.embeddings - outcome.embeddings[0]).abs().max() for outcome in outcomes]).min()


def check_collapse(training, spread):
    """spread: that of least_spread(); None where there is nothing to look at."""
    if spread is not None and spread < 1e-4:
        raise UserError(f"all embeddings of a batch are equal at step {training.step}, the network has collapsed: "
                        "lower --init-lr")


def epoch_totals(training):
    """The sums of the epoch so far over all processes; seconds are those of one."""
    totals = dict(zip(training.sums, distributed.reduce(training.sums.values())))
    for name in ("seconds", "waiting"):
        totals[name] /= distributed.world_size()
    return totals


def epoch_means(sums):
    """-> loss, accuracy (without the margin, of what has labels), img/s and the share of time spent waiting."""
    return {"loss": sums["loss"] / sums["images"], "accuracy": sums["correct"] / (sums["labelled"] or math.nan),
            "images_per_second": sums["images"] / sums["seconds"], "waiting": sums["waiting"] / sums["seconds"]}
