"""The exponential moving average of a network's weights (Polyak and Juditsky 1992), for evaluation."""
import copy

import torch
from torch import nn


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
