"""Sharded and sampled classes (Partial FC): which rows of the head a rank has, and which of them a step trains.

An et al., "Killing Two Birds with One Stone: Efficient and Robust Training of Face Recognition CNNs by Partial FC",
CVPR 2022, arXiv 2203.15565.
"""
import math
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist

BLOCK = 8192  # rows that are drawn at a time


class Shard(NamedTuple):
    """The part of the classes that a process has. The default is all of them, and no other process is asked."""
    rank: int = 0
    processes: int = 1

    def bounds(self, classes):
        """-> the first class, and the one after the last. Parts differ by one class at most, and may be empty."""
        return classes * self.rank // self.processes, classes * (self.rank + 1) // self.processes

    def gather(self, tensor):
        """Tensors of one shape -> those of every process, stacked: (processes, ...)."""
        if self.processes == 1:
            return tensor[None]
        tensors = tensor.new_empty(self.processes, *tensor.shape)
        dist.all_gather(list(tensors.unbind()), tensor.contiguous())
        return tensors

    def sum_(self, tensor):
        """The sum over the processes, in place."""
        if self.processes > 1:
            dist.all_reduce(tensor)
        return tensor

    def own(self, tensor):
        """What `gather` made of the tensors of all, flattened to (processes * B, ...) -> (B, ...) of this process."""
        count = len(tensor) // self.processes
        return tensor[self.rank * count:(self.rank + 1) * count]


WHOLE = Shard()


def draw_rows(classes, dimensions, first, last):
    """Rows first..last of the weight that xavier_uniform_ draws for all classes: the same however they are divided.

    The other rows are drawn too, a few at a time, so that the generator goes on as if all had been.
    """
    rows, bound = torch.empty(last - first, dimensions), math.sqrt(6 / (classes + dimensions))
    for start in range(0, classes, BLOCK):
        block = torch.empty(min(BLOCK, classes - start), dimensions).uniform_(-bound, bound)
        begin, end = max(first, start), min(last, start + len(block))
        if begin < end:
            rows[begin - first:end - first] = block[begin - start:end - start]
    return rows


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
    order = torch.rand(count, generator=generator)
    if labels.is_cuda:
        order = order.pin_memory()
    order = order.to(labels.device, non_blocking=True)
    # A row that is not here goes to the end of the list, which no row is.
    order = torch.cat([order, order.new_zeros(1)]).index_fill_(0, positive.where(positive >= 0, count), 2)[:count]
    return order.topk(min(count, max(int(rate * count), len(positive)))).indices.sort().values
