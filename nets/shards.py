"""Classes divided over the processes of torch.distributed: which are whose, and the little that is told of them."""
import math
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
