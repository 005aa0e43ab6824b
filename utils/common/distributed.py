"""Several ranks under torchrun. Without torchrun every function is that of a single rank."""
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from utils.common.device import available_cores
from utils.common.errors import UserError

TIMEOUT = timedelta(minutes=20)  # long enough for rank 0 to write a head of millions of classes to a slow disk


def start(device):
    """Join the ranks that torchrun started, if it did. Return this rank's device.

    From here on only rank 0 prints to stdout. Raises UserError if there are too few GPUs.
    """
    if "LOCAL_RANK" not in os.environ:
        return device
    local_ranks = int(os.environ["LOCAL_WORLD_SIZE"])
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if local_ranks > count:
            raise UserError(f"{local_ranks} ranks for {count} CUDA device(s): torchrun --nproc-per-node {count}")
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=TIMEOUT, device_id=device)
    else:
        torch.set_num_threads(max(1, available_cores() // local_ranks))  # torchrun sets one thread per rank
        dist.init_process_group("gloo", timeout=TIMEOUT)
    if not is_main():
        sys.stdout = open(os.devnull, "w", errors="backslashreplace")  # noqa: SIM115, open until the process ends
    return device


def stop():
    if dist.is_initialized():
        dist.barrier()  # a rank that leaves while another one communicates with it would abort that one
        dist.destroy_process_group()


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main():
    return rank() == 0


def wrap(loss_fn, ignored):
    """Return the module to train with: with several ranks, DistributedDataParallel around loss, head and network.

    ignored: names of parameters whose gradients are not averaged, such as a sharded head (TrainState chooses them).
    """
    if world_size() == 1:
        return loss_fn
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(loss_fn, ignored)  # there is no public way
    wrapped = DistributedDataParallel(loss_fn, gradient_as_bucket_view=True)
    # Each rank keeps its own running statistics until copy_buffers_of_main(). torch 2.14 renames the argument for it.
    wrapped.broadcast_buffers = False
    return wrapped


def copy_buffers_of_main(net):
    """Give every rank the running statistics of rank 0, whose network is the one that is saved."""
    if world_size() > 1:
        for buffer in net.buffers():
            dist.broadcast(buffer, 0)


def reduce(values, *, largest=False):
    """Return the sums over ranks of a list of numbers, or their maxima, as floats. Does not wait for a device."""
    if world_size() == 1:
        return list(map(float, values))
    tensor = torch.tensor(list(values), dtype=torch.float64)
    dist.all_reduce(tensor, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM)
    return tensor.tolist()


def gather(value):
    """Return the list of every rank's picklable value, ordered by rank, on every rank."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
