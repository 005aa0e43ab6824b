"""Learning rate, margin, optimizer, loss scale and moving average."""
import copy
import math
from dataclasses import dataclass

import torch
from torch import nn

from nets.arcface import BACKBONES

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


def decay_groups(named_parameters, embedding_layer, weight_decay, head_weight_decay):
    """-> three parameter groups: the head and the embedding layer, the other matrices, and what does not decay.

    named_parameters: of an ArcfaceNet, whose backbone has a layer of the name `embedding_layer`, and more.
    BatchNorm, PReLU and biases do not decay.
    A decayed PReLU drifts towards ReLU and a decayed BatchNorm scale only fights the next layer's
    (MobileFaceNet's authors and He et al. 2018, arXiv 1812.01187, both leave them out).
    """
    trained = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    of_head = "head.", f"arcface.{embedding_layer}."
    head = [p for name, p in trained if p.ndim >= 2 and name.startswith(of_head)]
    body = [p for name, p in trained if p.ndim >= 2 and not name.startswith(of_head)]
    rest = [p for _, p in trained if p.ndim < 2]
    return [{"params": body, "weight_decay": weight_decay},
            {"params": head, "weight_decay": head_weight_decay},
            {"params": rest, "weight_decay": 0.0}]


def make_optimizer(named_parameters, settings, learning_rate):
    """"sgd" (Nesterov), "adam" or "adamw", as settings.optimizer_type says; momentum is also Adam's first beta."""
    on_head = settings.weight_decay if settings.head_weight_decay is None else settings.head_weight_decay
    layer = BACKBONES[settings.backbone].embedding_layer
    groups = decay_groups(named_parameters, layer, settings.weight_decay, on_head)
    if settings.optimizer_type == "sgd":
        # Fused SGD fails on parameters whose gradients begin later than the others', as the head's may with a teacher.
        return torch.optim.SGD(groups, learning_rate, settings.momentum, nesterov=settings.momentum > 0,
                               fused=not settings.teacher)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer_type]
    return kind(groups, learning_rate, betas=(settings.momentum, 0.999), fused=True)


def clip_gradients(parameters, head, largest):
    """-> the norm of all gradients; where it is above `largest` they are scaled down to that. 0: they never are.

    Of a head whose classes are divided the other processes' parts count too, and in all processes alike.
    """
    divided = head.shard.processes > 1
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None
                                    and not (divided and parameter is head.weight)])
    if divided:
        norm = torch.hypot(norm, head.shard.sum_(torch.linalg.vector_norm(head.weight.grad).square()).sqrt())
    if largest:
        nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm


FIRST, GROWS_AFTER = 2.0 ** 16, 2000  # those of torch.amp.GradScaler


class LossScale:
    """`value` multiplies the loss, so that small gradients do not vanish in fp16; without fp16 it is 1 and stays so.

    torch.amp.GradScaler with its state in Python: it keeps its own on the device, and each look at it is a wait. What
    it needs to know, whether the gradients overflow, a step reads with its loss; over several processes it is the same.
    """

    def __init__(self, enabled, value=FIRST):
        self.enabled, self.value, self.good_steps = enabled, value if enabled else 1.0, 0

    def unscale_(self, parameters):
        """Divide the gradients by what the loss was multiplied by."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.enabled and gradients:
            torch._foreach_mul_(gradients, 1 / self.value)

    def update(self, overflow):
        """After each step: half of it where the gradients overflow, twice as much after GROWS_AFTER that do not."""
        self.good_steps = 0 if overflow else self.good_steps + 1
        if self.enabled and overflow:
            self.value /= 2
        elif self.enabled and self.good_steps % GROWS_AFTER == 0:
            self.value *= 2

    def state_dict(self):
        """In GradScaler's names."""
        return {"scale": self.value, "_growth_tracker": self.good_steps} if self.enabled else {}

    def load_state_dict(self, state):
        """state: of state_dict(), or GradScaler's; an empty one, of a run without fp16, changes nothing."""
        if self.enabled and state:
            self.value, self.good_steps = float(state["scale"]), int(state["_growth_tracker"])


class MovingAverage(nn.Module):
    """`update_parameters(net)` after each step; `module` is the averaged network.

    The first update is a copy, and the decay of update n is (1 + n) / (10 + n), at most `decay`, so that the random
    start is forgotten even in a short run. BatchNorm's statistics are averaged too. The state dict is that of
    torch.optim.swa_utils.AveragedModel, which counts on the device and waits for it in each step.
    """

    def __init__(self, net, decay):
        super().__init__()
        self.module, self.decay = copy.deepcopy(net), decay
        self.register_buffer("n_averaged", torch.tensor(0))  # updates so far; it stays on the CPU

    @torch.no_grad()
    def update_parameters(self, net):
        seen = self.n_averaged.item()
        floats, counts = [], []  # pairs of tensors; the counts are BatchNorm's, of batches
        for pair in zip((*self.module.parameters(), *self.module.buffers()), (*net.parameters(), *net.buffers())):
            (floats if pair[0].is_floating_point() else counts).append(pair)
        if seen:
            torch._foreach_lerp_(*zip(*floats), 1 - min((1 + seen) / (10 + seen), self.decay))
        else:
            torch._foreach_copy_(*zip(*floats))
        if counts:
            torch._foreach_copy_(*zip(*counts))
        self.n_averaged += 1
