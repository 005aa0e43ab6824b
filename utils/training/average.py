"""The exponential moving average of a network's weights (Polyak and Juditsky 1992), for evaluation."""
import torch
from torch.optim.swa_utils import AveragedModel


def average_weights(net, decay):
    """-> AveragedModel: `update_parameters(net)` after each step, `module` is the averaged network.

    The first update is a copy, and the decay of update n is (1 + n) / (10 + n), at most `decay`, so that the random
    start is forgotten even in a short run. BatchNorm's statistics are averaged too.
    """
    def blend(averages, currents, updates):
        if averages[0].is_floating_point():
            seen = updates.item()
            torch._foreach_lerp_(averages, currents, 1 - min((1 + seen) / (10 + seen), decay))
        else:  # BatchNorm's count of batches
            torch._foreach_copy_(averages, currents)

    return AveragedModel(net, multi_avg_fn=blend, use_buffers=True)
