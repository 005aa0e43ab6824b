"""Where the networks run."""
import ctypes
import os
import platform

import torch

from utils.machine.errors import UserError

DEVICES = "where to compute: auto (CUDA where there is one), cpu, cuda or cuda:N"  # the help of every --device


def choose_device(name):
    """"auto", "cpu", "cuda" or "cuda:N" -> torch.device; auto is CUDA when there is one and the CPU otherwise.

    Raises UserError where the device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: choose auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if not torch.cuda.is_available():
            raise UserError(f"--device {name}: PyTorch sees no CUDA device here, use --device cpu")
        if device.index is not None and device.index >= count:
            raise UserError(f"--device {name}: there are {count} CUDA devices, 0 to {count - 1}")
    return device


def describe_device(device):
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)"


def available_cores():
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory():
    """Stop glibc from handing every freed tensor back to the kernel, only to fault it in again a step later.

    On a CPU that is the largest single cost of a step (twice as much system time as user time). The
    process keeps its peak memory until it ends. Does nothing where the C library is not glibc.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_mmap_max = -1, -4  # the names and numbers of malloc.h
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)
