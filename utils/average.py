"""The exponential moving average of a network's weights (Polyak and Juditsky 1992), for evaluation."""
import torch
from torch.optim.swa_utils import AveragedModel


def average_weights(net, decay):
    """-> AveragedModel: `update_parameters(net)` after each step, `module` is the averaged network.

    The decay grows from 0.1 as (1 + n) / (10 + n) up to `decay`, so that the random start is forgotten even
    in a short run. BatchNorm's statistics are averaged too.
    """
    def blend(average, current, updates):
        if not average.is_floating_point():
            return current
        return torch.lerp(current, average, torch.minimum((1 + updates) / (10 + updates), limit).to(average))

    limit = torch.tensor(decay, device=next(net.parameters()).device)
    return AveragedModel(net, avg_fn=blend, use_buffers=True)
