"""Where the networks run."""
import ctypes
import os
import platform
import re

import torch

from utils.common.errors import UserError

# The help of every --device.
DEVICES = "where to compute: cpu, cuda, cuda:N, mps (a Mac's GPU, untested), or auto: the first of cuda, mps, cpu"


def choose_device(name):
    """"auto", "cpu", "cuda", "cuda:N" or "mps" -> torch.device; auto is the first of CUDA, MPS and CPU that is there.

    One of CUDA has its number, which several calls of torch.cuda ask for: without N that of the current device.
    Raises UserError where the device is not there, or is older than this PyTorch is made for.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"--device {name}: choose auto, cpu, cuda, cuda:N or mps")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"--device {name}: PyTorch sees no GPU of a Mac here, use --device cpu")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if not torch.cuda.is_available():
            raise UserError(f"--device {name}: PyTorch sees no CUDA device here, use --device cpu")
        if device.index is not None and device.index >= count:
            raise UserError(f"--device {name}: there are {count} CUDA devices, 0 to {count - 1}")
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        check_age(device)
    return device


def check_age(device):
    """Raises UserError for a card older than any that this PyTorch has code for; a newer one compiles its own."""
    made_for = [int(digits) for digits in re.findall(r"sm_(\d+)", " ".join(torch.cuda.get_arch_list()))]  # sm_90: 9.0
    major, minor = torch.cuda.get_device_capability(device)
    if made_for and 10 * major + minor < min(made_for):
        raise UserError(f"{describe_device(device)} is of compute capability {major}.{minor}, and this PyTorch is made "
                        f"for {min(made_for) / 10:.1f} and later: install one made for an older CUDA, or use --device "
                        "cpu")


def emulates_bf16(device):
    """-> whether the device has no instructions for bfloat16 and computes in float32 instead, not faster but slower."""
    return device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)


def describe_device(device):
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type == "mps":
        return "mps (a Mac's GPU: nobody has tested this program there)"
    return f"cpu ({torch.get_num_threads()} threads)"


def tune_cuda(device):
    """What training on CUDA sets for the whole process.

    cuDNN times its convolutions and takes the fastest, which may be another one in another run, so that a resumed run
    is not bit-exact there. Products of float32 matrices may round their factors to 11 bits (TF32), but for the
    head's (nets/softmax.py).
    """
    torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")


def send(tensor, device):
    """A CPU tensor -> the same on the device. On CUDA the copy starts from pinned memory, and nobody waits for it."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def available_cores():
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory(device):
    """Stop glibc from handing every freed tensor back to the kernel, only to fault it in again a step later.

    On a CPU that is the largest single cost of a step (twice as much system time as user time). The
    process keeps its peak memory until it ends. Does nothing for another device, and where the C library is not glibc.
    """
    if device.type == "cpu" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_mmap_max = -1, -4  # the names and numbers of malloc.h
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)
