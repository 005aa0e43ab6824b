"""Partial FC: each step trains the head on its pictures' people and a random part of the others.

An et al., "Killing Two Birds with One Stone: Efficient and Robust Training of Face Recognition CNNs by Partial FC",
CVPR 2022, arXiv 2203.15565.
"""
from contextlib import contextmanager

import torch

from utils.common.device import send


@contextmanager
def sampled_head(head, optimizer, labels, rate, seed):
    """Within, head.weight is a sample of its rows; after it they are written back.

    labels: of all pictures of the step, in this process, as many in each. rate: the share of the process's rows that
    is drawn, positives first, but as many rows as the step has labels at least: so that all positives find room, and
    nobody has to wait until the device has counted them. At 1 nothing is sampled.
    seed: of the draw; the process's rank counts too.

    Rows that are not drawn stay as they are, and so does what the optimizer remembers of them: neither momentum nor
    weight decay moves them. The gradients and the optimizer's work are those of the sample alone.
    """
    if rate == 1 or not len(head.weight):
        if rate < 1:
            head.shard.gather(labels)  # the others wait for it
        yield
        return
    whole = head.weight.data
    head.sample = draw(head, labels, rate, seed)
    remembered = optimizer.state[head.weight]
    kept = {name: value for name, value in remembered.items() if value.shape == whole.shape}
    head.weight.data = whole[head.sample]
    remembered.update({name: value[head.sample] for name, value in kept.items()})
    try:
        yield
        whole[head.sample] = head.weight.data
        for name, value in remembered.items():
            if value.shape == head.weight.shape:
                if name not in kept:  # made in this step
                    kept[name] = torch.zeros_like(whole)
                kept[name][head.sample] = value
    finally:
        head.weight.grad, head.weight.data = None, whole
        remembered.update(kept)
        head.sample = None


def draw(head, labels, rate, seed):
    """-> the rows of `weight`, ascending: those of all processes' labels, and others at random."""
    count = len(head.weight)
    positive = head.columns(head.shard.gather(labels).flatten())
    generator = torch.Generator().manual_seed(seed + head.shard.rank)
    order = send(torch.rand(count, generator=generator), labels.device)
    # A row that is not here goes to the end of the list, which no row is.
    order = torch.cat([order, order.new_zeros(1)]).index_fill_(0, positive.where(positive >= 0, count), 2)[:count]
    return order.topk(min(count, max(int(rate * count), len(positive)))).indices.sort().values
