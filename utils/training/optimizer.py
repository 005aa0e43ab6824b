"""The optimizer, which parameters decay, and the norm of their gradients."""
import torch
from torch import nn

from nets.arcface import BACKBONES


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
        # Fused SGD fails on parameters whose gradients begin later than the others', as the head's may with a teacher,
        # and a first step that overflows fp16 leaves it momentum that was never written.
        return torch.optim.SGD(groups, learning_rate, settings.momentum, nesterov=settings.momentum > 0,
                               fused=not (settings.teacher or settings.fp16))
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer_type]
    return kind(groups, learning_rate, betas=(settings.momentum, 0.999), fused=True)


def clip_gradients(parameters, head, largest):
    """-> the norm of all gradients; where it is above `largest` they are scaled down to that. 0: they never are.

    Of a head whose classes are divided the other processes' parts count too, and in all processes alike.
    """
    if head.shard.processes == 1:
        return nn.utils.clip_grad_norm_(parameters, largest or torch.inf)
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    replicated = nn.utils.clip_grad_norm_([one for one in parameters if one is not head.weight], torch.inf)
    norm = torch.hypot(replicated, norm_of_shards(head))
    if largest:
        torch._foreach_mul_([parameter.grad for parameter in parameters], (largest / (norm + 1e-6)).clamp_max(1))
    return norm


def norm_of_shards(head):
    return head.shard.sum_(torch.linalg.vector_norm(head.weight.grad).square()).sqrt()


def share_overflow(parameters, head):
    """Make a gradient that is not finite in one process's part of the head known to GradScaler in all of them.

    It looks at the gradients of its own process, and would skip the step in that one alone.
    """
    first = next(one for one in parameters if one.grad is not None and one is not head.weight)
    first.grad.view(-1)[:1].add_(norm_of_shards(head) * 0)  # inf * 0 is NaN
