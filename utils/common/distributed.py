"""One process or many under torchrun: who am I, and what do the others have?

Without torchrun every function is that of a world of one process.
"""
import os
import sys
from contextlib import suppress
from datetime import timedelta

import torch
import torch.distributed as dist

from utils.common.device import available_cores
from utils.common.errors import UserError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # torchrun's
TIMEOUT = timedelta(minutes=20)  # for what the others wait: rank 0 writes a head of millions to a slow disk
PATIENCE = timedelta(seconds=5)  # for rank 0 to end with the same error
NO_STORE = KeyError, ValueError, RuntimeError  # where there is no launcher, or it is gone


def start(device):
    """Join the other processes that torchrun started, if it did. -> the device of this process.

    Part of torchrun's variables, as other launchers and leftover shells set them, are not a torchrun: that is said.
    Gloo for what is on the CPU, as are the numbers of `reduce`; for what is on CUDA NCCL, or gloo where there is none
    (Windows). Only rank 0 prints to stdout from here on. Raises UserError where there are too few GPUs.
    """
    if missing := [name for name in VARIABLES if name not in os.environ]:
        if "RANK" in os.environ:
            print(f"RANK is set and {', '.join(missing)} not: one process, torchrun would set them all")
        return device
    if device.type == "cuda":
        here, count = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if here > count:
            raise UserError(f"{here} processes for {count} CUDA device(s): torchrun --nproc-per-node {count}")
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        raise UserError(f"torchrun and --device {device.type}: several processes need cuda or cpu")
    else:
        # torchrun sets one thread per process; share the cores instead.
        torch.set_num_threads(max(1, available_cores() // int(os.environ["LOCAL_WORLD_SIZE"])))
    nccl = device.type == "cuda" and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo", timeout=TIMEOUT,
                            device_id=device if nccl else None)
    if device.type == "cuda" and not nccl:
        print("this PyTorch has no NCCL: the processes talk by gloo, which is slower, and cannot --shard-head")
    if not is_main():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, open until the process ends
    return device


def stop():
    if dist.is_initialized():
        dist.barrier()  # a process that leaves while another still talks to it would abort that one
        dist.destroy_process_group()


def tell_once(line):
    """Print on stderr what ends this process: rank 0 always, another only where rank 0 does not within PATIENCE.

    So what ends all of them is told once, and also what ends one of them alone. Where they cannot agree each prints.
    """
    if os.environ.get("RANK") == "0":
        print(line, file=sys.stderr, flush=True)
        with suppress(*NO_STORE):
            launcher_store().set("told", line)
    elif not is_told():
        print(line, file=sys.stderr, flush=True)


def is_told():
    """-> whether another process tells what has ended this one."""
    try:
        store = launcher_store()
    except NO_STORE:
        return False
    try:
        store.wait(["told"], PATIENCE)
        return True
    except RuntimeError:  # rank 0 goes on; of the others the first tells
        return store.add("others", 1) > 1


def launcher_store():
    """What torchrun keeps for its processes, from before they join until after they part."""
    return dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=PATIENCE)


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
    # BatchNorm's statistics go from rank 0 to the others where they count, see copy_buffers_of_main.
    return DistributedDataParallel(objective, device_ids=[device.index] if device.type == "cuda" else None,
                                   broadcast_buffers=False, gradient_as_bucket_view=True,
                                   find_unused_parameters=objective.leaves_parameters_out)


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


def reduce(values, *, largest=False):
    """Numbers of every process -> their sums over processes, or their maxima, as a list of floats.

    They never are on a device, which is not waited for.
    """
    if world_size() == 1:
        return list(map(float, values))
    tensor = torch.tensor(list(values), dtype=torch.float64)
    dist.all_reduce(tensor, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM)
    return tensor.tolist()


def gather(value):
    """A picklable value of every process -> the list of them by rank, in every process."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
