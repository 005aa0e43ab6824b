"""torch.compile, where it pays."""
import time

import torch

from nets.arcface import BACKBONES
from utils.training.engine import enter_training_mode

# Training pictures from which on it pays on a CPU, for a backbone that it speeds up: on 2 cores of Zen 4 it takes up to
# 50 s, MobileFaceNet then goes from 47 to 70 img/s (in bfloat16 from 58 to 127) and iResNet-50 in bfloat16 from 9.7 to
# 10.5, but MobileNet from 37 to 34 (58 to 56). Other iResNets are taken to be like the 50. Not measured on CUDA: there
# it is a choice.
PAYS_FROM = 10_000


def compile_if_wanted(training, settings, pictures, images, labels):
    """Compile where --compile says so, or without it where that pays for so many training pictures. -> one sentence."""
    if settings.compile is None:
        settings.compile = (training.device.type == "cpu" and BACKBONES[settings.backbone].compile_pays
                            and pictures >= PAYS_FROM)
    if settings.compile:
        return compile_networks(training, images, labels)
    return "torch.compile: no (--compile turns it on)"


def compile_networks(training, images, labels):
    """Compile what the loss runs, for batches like these. -> one sentence; where it fails the networks stay eager.

    Both passes are compiled now, on a real batch; BatchNorm's statistics, the gradients and the random state
    are then put back, so the run is what it would have been.
    """
    start, modules = time.perf_counter(), training.objective.compiled_modules()
    images = images.contiguous(memory_format=training.memory_format)
    statistics = {name: buffer.clone() for name, buffer in training.net.named_buffers()}
    enter_training_mode(training)
    try:
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            for module in modules:
                module.compile(options=layout_options(training))
            for apart in {training.step < training.hint_steps, False}:
                training.objective.apart = apart
                with training.autocast():
                    outcome = training.objective(images, labels)
                outcome.loss.backward()
        message = f"compiled the networks in {time.perf_counter() - start:.0f} s"
    except Exception as error:  # whatever a compiler, its C++ compiler or its cache may raise
        for module in modules:
            module._compiled_call_impl = None
        message = f"the networks do not compile ({type(error).__name__}), training without (--no-compile: no try)"
    for name, buffer in training.net.named_buffers():
        buffer.copy_(statistics[name])
    training.objective.zero_grad(set_to_none=True)
    return message


def layout_options(training):
    """Keep the backward pass channels last on a CPU.

    The compiler looks for convolutions to decide, and a backward pass has only their gradients: the inputs that it
    computes anew came in another order and were copied: MobileFaceNet, 60 -> 70 img/s, in bfloat16 93 -> 113.
    """
    if training.device.type == "cpu" and training.memory_format == torch.channels_last:
        return {"force_layout_optimization": True}
    return {}
