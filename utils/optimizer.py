"""The optimizer, and which parameters decay."""
import torch


def decay_groups(net, weight_decay):
    """-> two parameter groups: matrices decay; BatchNorm, PReLU and biases do not.

    A decayed PReLU drifts towards ReLU and a decayed BatchNorm scale only fights the next layer's
    (MobileFaceNet's authors and He et al. 2018, arXiv 1812.01187, both leave them out).
    """
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    return [{"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0}]


def describe_groups(optimizer):
    return [f"weight decay {group['weight_decay']:g}: {len(group['params'])} tensors, "
            f"{sum(p.numel() for p in group['params']):,} parameters" for group in optimizer.param_groups]


def make_optimizer(net, settings, learning_rate):
    """"sgd" (Nesterov), "adam" or "adamw", as settings.optimizer_type says; momentum is also Adam's first beta."""
    groups = decay_groups(net, settings.weight_decay)
    if settings.optimizer_type == "sgd":
        return torch.optim.SGD(groups, learning_rate, settings.momentum, nesterov=settings.momentum > 0)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer_type]
    return kind(groups, learning_rate, betas=(settings.momentum, 0.999))
