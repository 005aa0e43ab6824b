"""The learning rate and the margin: pure functions of the step."""
import math
from dataclasses import dataclass

REFERENCE_BATCH = 64
# The learning rate that a batch size may scale to (lowest, highest), as in the published scripts.
LIMITS = {"sgd": (5e-4, 1e-1), "adam": (3e-4, 1e-3), "adamw": (3e-4, 1e-3)}


def scale_learning_rate(init_lr, min_lr_ratio, batch_size, optimizer_type):
    """-> (peak, lowest) learning rate: linear in the batch size (Goyal et al. 2017, arXiv 1706.02677), limited."""
    lowest, highest = LIMITS[optimizer_type]
    scale = batch_size / REFERENCE_BATCH
    peak = min(max(init_lr * scale, lowest), highest)
    floor = min(max(init_lr * min_lr_ratio * scale, lowest * 1e-2), highest * 1e-2)
    return peak, min(floor, peak)


@dataclass(frozen=True)
class LearningRate:
    """`schedule(step)` -> the learning rate of that optimizer step, counted from 0.

    A quadratic warm-up from peak / 10, then `decay`:
    "cos": half a cosine to the lowest rate, which then holds for three tenths of the run, at most 15 epochs.
    "step": ten equal stretches, from the peak to the lowest rate by a constant factor.
    milestones (epochs, may be fractions), where there are any, replace the decay: a tenth from each of them on.
    warmup_epochs: None is a tenth of the run, at most 3 epochs, for "cos", and none otherwise. These are the
    published rules, except that the rate moves every step and not once an epoch.
    """
    decay: str
    peak: float
    lowest: float
    total_steps: int
    steps_per_epoch: int
    warmup_epochs: float | None = None
    milestones: tuple = ()

    def __call__(self, step):
        warmup = self.warmup_steps()
        if step < warmup:
            start = max(0.1 * self.peak, 1e-6)
            return start + (self.peak - start) * (step / warmup) ** 2
        if self.milestones:
            return self.peak * 0.1 ** sum(step >= epoch * self.steps_per_epoch for epoch in self.milestones)
        return self.cosine(step, warmup) if self.decay == "cos" else self.ten_steps(step)

    def warmup_steps(self):
        if self.warmup_epochs is not None:
            return self.warmup_epochs * self.steps_per_epoch
        if self.milestones or self.decay != "cos":
            return 0
        return min(0.1 * self.total_steps, 3 * self.steps_per_epoch)

    def cosine(self, step, warmup):
        flat = min(0.3 * self.total_steps, 15 * self.steps_per_epoch)
        if step >= self.total_steps - flat:
            return self.lowest
        progress = (step - warmup) / (self.total_steps - warmup - flat)
        return self.lowest + (self.peak - self.lowest) * (1 + math.cos(math.pi * progress)) / 2

    def ten_steps(self, step):
        stretch = min(step * 10 // self.total_steps, 9)
        return self.peak * (self.lowest / self.peak) ** (stretch / 9)


@dataclass(frozen=True)
class Margin:
    """`schedule(step)` -> the head's m, which grows linearly from 0 in the first warmup_steps."""
    m: float
    warmup_steps: float = 0

    def __call__(self, step):
        return self.m * min(1, step / self.warmup_steps) if self.warmup_steps else self.m
