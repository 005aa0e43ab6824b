"""The device that the networks run on."""
import ctypes
import importlib.metadata
import os
import platform
import re
import sys
from contextlib import suppress
from pathlib import Path

import torch

from utils.common.errors import UserError

# The help of every --device.
DEVICES = "where to compute: cpu, cuda, cuda:N, mps (a Mac's GPU, untested), or auto: the first of cuda, mps, cpu"
PACKAGES = ("torch", "torchvision", "numpy", "pillow", "scikit-learn", "matplotlib", "opencv-python-headless",
            "opencv-python", "onnx", "onnxruntime", "onnxruntime-gpu", "safetensors")


def choose_device(name):
    """Return the torch.device for "auto" (the first available GPU, or the CPU), "cpu", "cuda", "cuda:N" or "mps".

    A CUDA device always has its index, which several functions of torch.cuda need. Raises UserError if the device does
    not exist.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, found in available.items() if found)
    try:
        device = torch.device(name)
        found = available[device.type]
    except (RuntimeError, KeyError):
        raise UserError(f"--device {name}: choose auto, cpu, cuda, cuda:N or mps") from None
    if not found:
        raise UserError(f"--device {name}: PyTorch sees no {device.type.upper()} device here, use --device cpu")
    if device.type != "cuda":
        return device
    index, count = torch.cuda.current_device() if device.index is None else device.index, torch.cuda.device_count()
    if index >= count:
        raise UserError(f"--device {name}: there are {count} CUDA devices, 0 to {count - 1}")
    return torch.device("cuda", index)


def emulates_bf16(device):
    """Return whether --bf16 is slower than float32: 1.5 to 2.4 times, measured on CPUs without the instructions."""
    if device.type == "cuda":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    with suppress(OSError):
        instructions = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")  # Linux
        return device.type == "cpu" and not re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", instructions)
    return False


def describe_device(device, bf16=False):
    """Return the device's name for a message. bf16: add a warning if that makes it slower."""
    if device.type == "cuda":
        name = f"{device} ({torch.cuda.get_device_name(device)})"
    elif device.type == "mps":
        name = "mps (a Mac's GPU, not tested: --device cpu is)"
    else:
        name = f"cpu ({torch.get_num_threads()} threads)"
    slow = bf16 and emulates_bf16(device)
    return name + (", which has no bfloat16 instructions: --bf16 is slower than float32" if slow else "")


def describe_versions():
    """Return the versions of Python, of the system and of the installed packages, a line each."""
    lines = [f"Python {platform.python_version()} on {platform.platform()}"]
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            lines.append(f"{package} {importlib.metadata.version(package)}")
    return "\n".join(lines)


def tune_cuda(device):
    """Set up CUDA for training, for the whole process.

    cuDNN times its convolutions and takes the fastest, which may differ from run to run, so that a resumed run is not
    bit-exact. Float32 matrix products may use TF32, except the head's (nets/softmax.py).
    """
    torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")


def send(tensor, device):
    """Return a CPU tensor on the device. On CUDA it is copied from pinned memory, without waiting."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def available_cores():
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory(device):
    """Stop glibc from returning freed memory to the kernel: on a CPU that is the largest single cost of a step.

    The process keeps its peak memory until it ends. Does nothing on another device or C library.
    """
    if device.type == "cpu" and sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)   # M_MMAP_MAX of malloc.h
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD
