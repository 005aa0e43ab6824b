"""torch.compile, if it pays."""
import torch

from nets.arcface import BACKBONES

# Images to train on from which it pays on a CPU, for a backbone that it speeds up: on 2 cores of Zen 4 it takes up to
# 50 s, MobileFaceNet then goes from 47 to 70 img/s (in bfloat16 from 58 to 127) and iResNet-50 in bfloat16 from 9.7 to
# 10.5, but MobileNet from 37 to 34 (58 to 56). Other iResNets are assumed to be like the 50. On CUDA it is a choice.
MIN_IMAGES = 10_000


def compile_if_it_pays(state, args, images):
    """Compile the backbone if --compile asks for it, or by default if that pays for so many images. Return a line."""
    if args.compile is None:
        args.compile = (state.device.type == "cpu" and BACKBONES[args.backbone].compile_pays and images >= MIN_IMAGES)
    if not args.compile:
        return "torch.compile: no (--compile turns it on)"
    torch._dynamo.config.suppress_errors = True  # what cannot be compiled runs eagerly, with a warning
    # Inductor looks for convolutions to choose the memory layout, and a backward pass has only their gradients. Without
    # this option it recomputes inputs in another layout and copies them: MobileFaceNet 60 instead of 70 img/s, in
    # bfloat16 93 instead of 113.
    options = {"force_layout_optimization": True} if state.device.type == "cpu" else {}
    state.net.arcface.compile(options=options)
    return "torch.compile: yes, the first step takes up to a minute (--no-compile: no)"
