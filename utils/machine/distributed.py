"""One process or many under torchrun: who am I, and what do the others have?

Without torchrun every function is that of a world of one process.
"""
import os
import sys

import torch
import torch.distributed as dist

from utils.machine.device import available_cores

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # torchrun's


def start(device):
    """Join the other processes that torchrun started, if it did. -> the device of this process.

    Part of torchrun's variables, as other launchers and leftover shells set them, are not a torchrun: that is said.
    NCCL on CUDA, gloo on the CPU. Only rank 0 prints to stdout from here on.
    """
    if missing := [name for name in VARIABLES if name not in os.environ]:
        if "RANK" in os.environ:
            print(f"RANK is set and {', '.join(missing)} not: one process, torchrun would set them all")
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        # torchrun sets one thread per process; share the cores instead.
        torch.set_num_threads(max(1, available_cores() // int(os.environ["LOCAL_WORLD_SIZE"])))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if not is_main():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, open until the process ends
    return device


def stop():
    if dist.is_initialized():
        dist.barrier()  # a process that leaves while another still talks to it would abort that one
        dist.destroy_process_group()


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main():
    return rank() == 0


def wrap(objective, device, own=()):
    """-> the module to train with: DistributedDataParallel around the loss, head and network included, where needed.

    own: the names of parameters that each process has for itself.
    """
    if world_size() == 1:
        return objective
    from torch.nn.parallel import DistributedDataParallel
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(objective, own)  # there is no public way
    # A student whose stages learn apart, or without labels, has parameters that a step does not reach.
    return DistributedDataParallel(objective, device_ids=[device.index] if device.type == "cuda" else None,
                                   find_unused_parameters=hasattr(objective, "teacher"))


def launcher():
    """-> the command that starts as many processes as there are now, to be followed by the script."""
    if world_size() == 1:
        return "python"
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    hosts = "" if here == world_size() else (
        f"--nnodes {world_size() // here} --rdzv-backend c10d --rdzv-endpoint HOST:29500 ")
    return f"torchrun {hosts}--nproc-per-node {here}"


def copy_buffers_of_main(net):
    """Give every process the BatchNorm statistics of rank 0, whose network is the one that is saved.

    Each process has moved its own by its share of the last batch.
    """
    if world_size() > 1:
        for buffer in net.buffers():
            dist.broadcast(buffer, 0)


def reduce(values, device, largest=False):
    """Numbers of every process -> their sums over processes, or their maxima, as a list of floats."""
    if world_size() == 1:
        return list(map(float, values))
    tensor = torch.tensor(list(values), dtype=torch.float64, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM)
    return tensor.tolist()


def gather(value):
    """A picklable value of every process -> the list of them by rank, in every process."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
