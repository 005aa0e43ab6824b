"""The training step that gpu.py measures: its modes, the work it cannot do without, and what it launches."""
import math
import sys
import warnings
from collections import Counter
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))
from nets.arcface import ArcfaceNet
from utils.data.augmentation import augment

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "float32": torch.float32}
LOSS_SCALE = {"fp16": 1024.0}
LAUNCHES = "cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpy", "cudaMemset"


def capture_step(compute, warm_up=3):
    """Return a function like `compute` that runs as one CUDA graph after `warm_up` calls.

    compute(*tensors): forward, loss and backward from gradients that are None; returns CUDA tensors. The first calls
    are real steps, run eagerly on the stream of the capture. Later calls copy their arguments into the graph's inputs
    and replay it, which overwrites the returned tensors and the gradients.

    Limits: one shape; no synchronization, CPU tensor or pinned memory inside; Python numbers (margin, loss scale) and
    control flow stay as captured; gradients must not be set to None afterwards and never accumulate; one rank. The
    optimizer stays outside. The graph keeps its peak memory. If the capture raises, set the gradients to None and call
    `compute`; the random generator then starts from its default seed. Not tested on CUDA.
    """
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    calls, inputs, outputs = 0, None, None

    def step(*tensors):
        nonlocal calls, inputs, outputs
        calls += 1
        if calls <= warm_up:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # AccumulateGrad nodes remember the stream that they first saw
                results = compute(*tensors)
            torch.cuda.current_stream().wait_stream(stream)
            return results
        if outputs is None:
            inputs = [tensor.clone() for tensor in tensors]
            try:
                # After an error torch.cuda.graph leaves its stream current; the outer context restores the other one.
                # "thread_local": the loader's thread pins memory meanwhile, which the default mode forbids.
                with (torch.cuda.stream(torch.cuda.current_stream()),
                      torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local")):
                    outputs = compute(*inputs)
            except Exception:  # the generator would stay in capture mode, and dropout would raise: a fresh state
                fresh = torch.Generator("cuda").graphsafe_get_state()
                torch.cuda.default_generators[torch.cuda.current_device()].graphsafe_set_state(fresh)
                raise
        for static, tensor in zip(inputs, tensors):
            static.copy_(tensor)
        graph.replay()
        return outputs
    return step


def synthetic_faces(count, seed=0):
    """Return uint8 (count, 112, 112, 3): smooth random patterns."""
    colors = torch.rand(count, 3, 14, 14, generator=torch.Generator().manual_seed(seed)) * 255
    return nn.functional.interpolate(colors, size=112, mode="bilinear").permute(0, 2, 3, 1).byte().contiguous()


def count_work(backbone):
    """Return what one image costs: MACs, numbers moved in training, numbers moved in embedding (see gpu.py, Floor)."""
    macs, training, embedding = [], [], []

    def count(layer, inputs, output):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            macs.append(output.numel() * layer.weight[0].numel())
            embedding.append(inputs[0].numel() + output.numel())
            training.append(3 * embedding[-1])
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            training.append(8 * output.numel())

    with torch.device("meta"):
        net = ArcfaceNet(None, backbone).eval()
        for layer in net.modules():
            layer.register_forward_hook(count)
        net(torch.empty(1, 3, 112, 112))
    return sum(macs), sum(training), sum(embedding)


def make_step(device, backbone, batch, precision, mode, classes):
    """Return (net, optimizer, step): step(number) trains on one batch and returns its loss, a tensor if unread."""
    options, scale = mode.split("+"), LOSS_SCALE.get(precision, 1.0)
    torch.manual_seed(0)
    net = ArcfaceNet(classes, backbone).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, 0.9, weight_decay=5e-4, nesterov=True, fused=True)
    batches = [(synthetic_faces(batch, seed), torch.randint(classes, (batch,))) for seed in range(4)]
    if device.type == "cuda":
        batches = [(pixels.pin_memory(), labels.pin_memory()) for pixels, labels in batches]
    if "compile" in options:
        net.arcface.compile(dynamic=False, options={"force_layout_optimization": "layout" in options,
                                                    "triton.cudagraphs": "overhead" in options})

    def compute(images, labels):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, DTYPES[precision], enabled=precision != "tf32"):
            loss = net.head.losses(net.arcface(images), labels)[0].mean()
        (loss * scale).backward()
        return loss.detach()

    run = capture_step(compute) if "graph" in options else compute

    def step(number):
        pixels, labels = (tensor.to(device, non_blocking=True) for tensor in batches[number % len(batches)])
        images, _ = augment(pixels, 0, 0, number)
        torch.compiler.cudagraph_mark_step_begin()
        loss = run(images.contiguous(memory_format=torch.channels_last), labels)
        gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
        if scale != 1:
            torch._foreach_mul_(gradients, 1 / scale)
        outcome = torch.stack([loss, nn.utils.get_total_norm(gradients)])
        loss, norm = (outcome[0], 0.0) if "unread" in options else outcome.tolist()
        if math.isfinite(norm):
            optimizer.step()
        return loss
    return net, optimizer, step


def profile_step(bench, step, seconds, steps=3):
    """Return waits, launches, kernels and their part of the step's time; on a CPU kernels are operators."""
    with warnings.catch_warnings(record=True) as met, torch.profiler.profile() as profile:
        warnings.simplefilter("always")
        if bench.cuda:
            torch.cuda.set_sync_debug_mode("warn")
        for number in range(steps):
            step(number)
        if bench.cuda:
            torch.cuda.set_sync_debug_mode("default")
        bench.synchronize()
    events, milliseconds = [event for event in profile.events() if not event.is_user_annotation], Counter()
    kernels = [event for event in events if event.device_type.name == bench.device.type.upper()]
    for event in kernels:
        milliseconds[event.name[:80]] += event.time_range.elapsed_us() / 1e3 / steps
    return {"waits": sum("called a synchronizing" in str(one.message) for one in met) / steps,
            "launches": sum(event.name.startswith(LAUNCHES) for event in events) / steps,
            "kernels": len(kernels) / steps, "busy": milliseconds.total() / 1e3 / seconds,
            "slowest ms": dict(milliseconds.most_common(10))}
