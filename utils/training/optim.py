"""Learning rate, margin, optimizer, gradient clipping, loss scale, and the moving average of the weights."""
import copy
import math
from dataclasses import dataclass

import torch
from torch import nn

from nets.arcface import BACKBONES

REFERENCE_BATCH = 64
# The lowest and highest peak learning rate that scaling with the batch size can give, as in the published scripts.
LIMITS = {"sgd": (5e-4, 1e-1), "adam": (3e-4, 1e-3), "adamw": (3e-4, 1e-3)}


def scale_learning_rate(init_lr, batch_size, optimizer_type):
    """Return the peak learning rate: linear in the batch size (Goyal et al. 2017, arXiv 1706.02677), limited."""
    lowest, highest = LIMITS[optimizer_type]
    return min(max(init_lr * batch_size / REFERENCE_BATCH, lowest), highest)


@dataclass(frozen=True)
class LearningRate:
    """`schedule(step)` returns the learning rate of an optimizer step, counted from 0.

    A quadratic warm-up from peak / 10, then `decay`:
    "cos": half a cosine to the lowest rate. The last 30% of the run (at least 1, at most 15 epochs) keep that rate.
    "step": ten equal stretches, from the peak to the lowest rate by a constant factor.
    milestones: epochs at which the rate is divided by ten, such as 20.5. If given, they replace the decay.
    warmup_epochs: None is 10% of the run (at least 1, at most 3 epochs) for "cos" without milestones, so that a run of
    one epoch is all warm-up, and no warm-up otherwise. If a number is given, the flat end may be shorter than an epoch.
    These are the published rules, except that the rate changes with every step instead of every epoch.
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
        return min(max(0.1 * self.total_steps, self.steps_per_epoch), 3 * self.steps_per_epoch)

    def cosine(self, step, warmup):
        shortest = self.steps_per_epoch if self.warmup_epochs is None else 0
        flat = min(max(0.3 * self.total_steps, shortest), 15 * self.steps_per_epoch)
        if step >= self.total_steps - flat:
            return self.lowest
        progress = (step - warmup) / (self.total_steps - warmup - flat)
        return self.lowest + (self.peak - self.lowest) * (1 + math.cos(math.pi * progress)) / 2

    def ten_steps(self, step):
        stretch = min(step * 10 // self.total_steps, 9)
        return self.peak * (self.lowest / self.peak) ** (stretch / 9)


@dataclass(frozen=True)
class Margin:
    """`schedule(step)` returns the head's m, which grows linearly from 0 over the first warmup_steps."""
    m: float
    warmup_steps: float = 0

    def __call__(self, step):
        return self.m * min(1, step / self.warmup_steps) if self.warmup_steps else self.m


def make_optimizer(net, args, learning_rate):
    """Return the optimizer that --optimizer-type names: SGD with Nesterov momentum, Adam or AdamW.

    Its parameter groups: body, head and embedding layer, and what does not decay. Weight decay would turn a PReLU
    into a ReLU. On a BatchNorm scale it only enlarges the next layer's weights (He et al. 2018, arXiv 1812.01187).
    """
    trained = [(name, parameter) for name, parameter in net.named_parameters() if parameter.requires_grad]
    prefixes = "head.", f"arcface.{BACKBONES[net.backbone].embedding_layer}."
    body = [p for name, p in trained if p.ndim >= 2 and not name.startswith(prefixes)]
    head = [p for name, p in trained if p.ndim >= 2 and name.startswith(prefixes)]
    rest = [p for _, p in trained if p.ndim < 2]
    groups = [{"params": body, "weight_decay": args.weight_decay[0]},
              {"params": head, "weight_decay": args.weight_decay[-1]},
              {"params": rest, "weight_decay": 0.0}]
    if args.optimizer_type == "sgd":
        return torch.optim.SGD(groups, learning_rate, args.momentum, nesterov=args.momentum > 0, fused=True)
    optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[args.optimizer_type]
    return optimizer(groups, learning_rate, betas=(args.momentum, 0.999), fused=True)


def clip_gradients(parameters, head, max_norm):
    """Scale the gradients down if their norm is above max_norm (0: never). Return the norm before.

    With a sharded head the norm is that over all ranks' rows, and the same on all ranks.
    """
    sharded = head.shard.world_size > 1
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None
                                    and not (sharded and parameter is head.weight)])
    if sharded:
        norm = torch.hypot(norm, head.shard.sum_(torch.linalg.vector_norm(head.weight.grad).square()).sqrt())
    if max_norm:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


class LossScale:
    """`value` multiplies the loss in fp16 (arXiv 1710.03740), so that small gradients do not vanish; else it is 1.

    It replaces torch.amp.GradScaler, which waits for the device to read its own state. Here the caller reads
    the loss and whether the gradients overflowed at once, the same on all ranks.
    """

    def __init__(self, enabled, value=2.0 ** 16):
        self.enabled, self.value, self.finite_steps = enabled, value if enabled else 1.0, 0

    def unscale_(self, parameters):
        """Divide the gradients by `value`."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.enabled and gradients:
            torch._foreach_mul_(gradients, 1 / self.value)

    def update(self, overflow):
        """Halve the value after an overflow, and double it after 2,000 steps without one."""
        self.finite_steps = 0 if overflow else self.finite_steps + 1
        if self.enabled and overflow:
            self.value /= 2
        elif self.enabled and self.finite_steps % 2000 == 0:
            self.value *= 2

    def state_dict(self):
        return {"value": self.value, "finite_steps": self.finite_steps} if self.enabled else {}

    def load_state_dict(self, state):
        """Load the state; that of a run without fp16 is empty and is ignored."""
        if self.enabled and state:
            self.value, self.finite_steps = state["value"], state["finite_steps"]


class MovingAverage:
    """Exponential moving average of a network's weights (Polyak and Juditsky 1992): call `update(net)` after each step.

    `net` is the averaged network, or the trained one itself if decay is 0. Running statistics are averaged too. The
    first update is a copy, and the decay of update n is (1 + n) / (10 + n), at most `decay`, so that a short run
    forgets its random start. torch.optim.swa_utils.AveragedModel waits for the device in each step.
    """

    def __init__(self, net, decay):
        self.net, self.decay, self.updates = copy.deepcopy(net) if decay else net, decay, 0

    @torch.no_grad()
    def update(self, net):
        if not self.decay:
            return
        averaged, trained = ([tensor for tensor in (*each.parameters(), *each.buffers()) if tensor.is_floating_point()]
                             for each in (self.net, net))
        decay = min((1 + self.updates) / (10 + self.updates), self.decay) if self.updates else 0
        torch._foreach_lerp_(averaged, trained, 1 - decay)
        self.updates += 1

    def state_dict(self):
        return {"net": self.net.state_dict(), "updates": self.updates} if self.decay else {}

    def load_state_dict(self, state):
        if self.decay:
            self.net.load_state_dict(state["net"])
            self.updates = state["updates"]
