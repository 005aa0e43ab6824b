"""Sharded and sampled classes (Partial FC): the rows of the head that a rank holds, and those that a step trains.

An et al., "Killing Two Birds with One Stone: Efficient and Robust Training of Face Recognition CNNs by Partial FC",
CVPR 2022, arXiv 2203.15565.
"""
import math
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist

ROWS_AT_ONCE = 8192  # rows that are drawn at a time


class Shard(NamedTuple):
    """A rank's part of the classes. The default is all of them, without any communication."""
    rank: int = 0
    world_size: int = 1

    def bounds(self, classes):
        """Return the first class and the one after the last. Parts differ by one class at most, and may be empty."""
        return classes * self.rank // self.world_size, classes * (self.rank + 1) // self.world_size

    def gather(self, tensor):
        """Return the tensors of all ranks, which have one shape, stacked: (world_size, ...)."""
        if self.world_size == 1:
            return tensor[None]
        tensors = tensor.new_empty(self.world_size, *tensor.shape)
        dist.all_gather(list(tensors.unbind()), tensor.contiguous())
        return tensors

    def sum_(self, tensor):
        """Sum a tensor over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def own(self, tensor):
        """Return this rank's part (B, ...) of a gathered and flattened tensor (world_size * B, ...)."""
        count = len(tensor) // self.world_size
        return tensor[self.rank * count:(self.rank + 1) * count]

    def collect_rows(self, rows):
        """Return the rows (C, D) of all ranks, on the CPU of rank 0; None on the other ranks."""
        if self.world_size == 1:
            return rows.cpu()
        parts = None if self.rank else [None] * self.world_size
        dist.gather_object(rows.cpu(), parts)
        return None if self.rank else torch.cat(parts)


UNSHARDED = Shard()


def init_rows(classes, dimensions, first, end):
    """Return rows first..end-1 of the (classes, dimensions) matrix that xavier_uniform_ would draw.

    The other rows are drawn too, some at a time: neither the rows nor the generator's state depend on the sharding.
    """
    bound, parts = math.sqrt(6 / (classes + dimensions)), []
    for start in range(0, classes, ROWS_AT_ONCE):
        drawn = torch.empty(min(ROWS_AT_ONCE, classes - start), dimensions).uniform_(-bound, bound)
        parts.append(drawn[max(0, first - start):max(0, end - start)].clone())
    return torch.cat(parts)


@contextmanager
def sampled_head(head, optimizer, labels, rate, seed):
    """Inside this block head.weight holds a sample of its rows, which are written back at the end.

    labels: of the step's images on this rank; all ranks have equally many. rate: fraction of this rank's rows to keep.
    The classes of all ranks' labels are kept first, and at least as many rows as there are labels. With rate 1 nothing
    is sampled. seed: of the sample; the rank is added to it.
    Rows that are not drawn keep their weight and their optimizer state: neither momentum nor weight decay moves them.
    """
    if rate == 1:
        yield
        return
    weight, state = head.weight.data, optimizer.state[head.weight]
    head.sample = sample_rows(head, labels, rate, seed)
    full = {name: value for name, value in state.items() if value.shape == weight.shape}
    head.weight.data = weight[head.sample]
    state.update({name: value[head.sample] for name, value in full.items()})
    try:
        yield
        weight[head.sample] = head.weight.data
        for name, value in state.items():
            if value.shape == head.weight.shape:
                if name not in full:  # created in this step
                    full[name] = torch.zeros_like(weight)
                full[name][head.sample] = value
    finally:
        head.weight.grad, head.weight.data = None, weight
        state.update(full)
        head.sample = None


def sample_rows(head, labels, rate, seed):
    """Return ascending rows of `weight`: those of the labels of all ranks, and random ones."""
    count = len(head.weight)
    positive = head.rows_of(head.shard.gather(labels).flatten())
    # Labels of other ranks go to the extra entry, which is cut off.
    priority = torch.rand(count + 1, generator=torch.Generator().manual_seed(seed + head.shard.rank))
    if labels.is_cuda:
        priority = priority.pin_memory().to(labels.device, non_blocking=True)
    priority = priority.index_fill_(0, positive.where(positive >= 0, count), 2)[:count]
    return priority.topk(min(count, max(int(rate * count), len(positive)))).indices.sort().values
