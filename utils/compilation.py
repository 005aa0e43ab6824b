"""torch.compile for the backbone, where it pays."""
import time

import torch

# Training pictures below which compiling costs more than it saves, by backbone; absent: it does not pay. On 2 CPU cores
# compiling took 15 to 50 s and mobilefacenet went from 46 to 52-57 img/s; the figures of the iresnets are estimates.
# Nothing is measured on CUDA, where --compile is a choice.
PAYS_FROM = {"mobilefacenet": 30_000, "iresnet18": 10_000, "iresnet34": 10_000, "iresnet50": 10_000,
             "iresnet100": 10_000, "iresnet200": 10_000}


def compile_pays(backbone, device, pictures):
    return device.type == "cpu" and pictures >= PAYS_FROM.get(backbone, float("inf"))


def compile_backbone(training, images):
    """Compile the backbone for batches like `images`. -> one sentence; where it fails the network stays eager.

    Both passes are compiled now, on a real batch; BatchNorm's statistics, the gradients and the random state
    are then put back, so the run is what it would have been.
    """
    start, backbone = time.perf_counter(), training.net.arcface.train()
    images = images.contiguous(memory_format=training.memory_format)
    statistics = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    try:
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            backbone.compile()
            with training.autocast():
                embeddings = backbone(images)
            embeddings.sum().backward()
        message = f"compiled the backbone in {time.perf_counter() - start:.0f} s"
    except Exception as error:  # whatever a compiler, its C++ compiler or its cache may raise
        backbone._compiled_call_impl = None
        message = f"the backbone does not compile ({type(error).__name__}), training without (--no-compile: no try)"
    for name, buffer in backbone.named_buffers():
        buffer.copy_(statistics[name])
    training.net.zero_grad(set_to_none=True)
    return message
