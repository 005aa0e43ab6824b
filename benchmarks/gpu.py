"""Speed of training on one GPU: eager, compiled and captured in a CUDA graph, each beside its floor.

    python benchmarks/gpu.py                     everything, in about 8 minutes; on a CPU a small size of it
    python benchmarks/gpu.py --only training --seconds 200

Faces are synthetic, networks use bfloat16 on a GPU. Prints tables and writes gpu.json. The mode of a
training step is "eager" or options joined by "+": compile (Inductor), layout (force_layout_optimization), graph
(forward, loss and backward in one CUDA graph). Graphs come last: after a failed capture nothing can be measured.

Floor: the larger of bytes over the measured copy rate and operations over the measured matrix rate. In training each
convolution moves its input and output three times, each BatchNorm its input eight times, SGD each parameter five times;
a MAC is six operations. The head needs three products, so its floor is three times one of them.

Decide as follows, and repeat what is in doubt with --only:
1. busy (time in kernels / time of the step) is above 0.8 for eager at batch 64: a CUDA graph cannot help there.
2. graph is 1.5 times as fast as eager at 64, with a loss difference no larger than that of compile: capture.
3. compile+layout or compile is 1.15 times as fast as eager at 512: compile.
4. busy is below 0.9 for graph at 64: read the loss one step late.
5. end_to_end is below 0.9 of training at the same batch: the loader is the limit, not the step.
"""
import csv
import gc
import inspect
import json
import math
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))
from nets.arcface import ArcfaceNet
from nets.head import ArcMarginProduct
from nets.softmax import float32_products
from utils.common.device import available_cores, choose_device, describe_device, tune_cuda
from utils.common.errors import SettingsParser, script
from utils.data.augmentation import augment

CLASSES = 10_575  # of CASIA-WebFace
TRAIN = Path(__file__).parent.parent / "train.py"


def capture_step(compute, warm_up=3):
    """Return a function like `compute` that runs as one CUDA graph after `warm_up` calls.

    compute(*tensors): forward, loss and backward from gradients that are None; returns CUDA tensors. The first calls
    are real steps, run eagerly on the stream of the capture. Later calls copy their arguments into the graph's inputs
    and replay it, which overwrites the returned tensors and the gradients.

    Limits: one shape, one rank; no synchronization, CPU tensor or pinned memory inside; Python numbers (margin, loss
    scale) and control flow stay as captured; gradients must not be set to None afterwards and never accumulate. The
    optimizer stays outside. The graph keeps its peak memory. After a failed capture end the process, because the random
    generator stays in capture mode. Not tested on CUDA.
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
            # "thread_local": the loader's thread pins memory meanwhile, which the default mode forbids.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                outputs = compute(*inputs)
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
    """Return what one image costs: MACs, and numbers moved in training (see Floor above)."""
    macs, convolutions, norms = [], [], []

    def count(layer, inputs, output):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            macs.append(output.numel() * layer.weight[0].numel())
            convolutions.append(inputs[0].numel() + output.numel())
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            norms.append(output.numel())

    with torch.device("meta"):
        net = ArcfaceNet(None, backbone).eval()
        for layer in net.modules():
            layer.register_forward_hook(count)
        net(torch.empty(1, 3, 112, 112))
    return sum(macs), 3 * sum(convolutions) + 8 * sum(norms)


def make_step(bench, backbone, batch, mode):
    """Return (net, step): step(number) trains on one batch and returns its loss."""
    torch.manual_seed(0)
    net = ArcfaceNet(CLASSES, backbone).to(bench.device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, 0.9, weight_decay=5e-4, nesterov=True, fused=True)
    batches = [(synthetic_faces(batch, seed).to(bench.device), torch.randint(CLASSES, (batch,)).to(bench.device))
               for seed in range(4)]
    if "compile" in mode:
        net.arcface.compile(dynamic=False, options={"force_layout_optimization": "layout" in mode})

    def compute(images, labels):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(bench.device.type, bench.dtype, enabled=bench.cuda):
            loss = net.head.losses(net.arcface(images), labels)[0].mean()
        loss.backward()
        return loss.detach()

    run = capture_step(compute) if "graph" in mode else compute

    def step(number):
        pixels, labels = batches[number % len(batches)]
        images, _ = augment(pixels, 0, 0, number)
        loss = run(images.contiguous(memory_format=torch.channels_last), labels)
        norm = nn.utils.get_total_norm([tensor.grad for tensor in net.parameters() if tensor.grad is not None])
        loss, norm = torch.stack([loss, norm]).tolist()
        if math.isfinite(norm):
            optimizer.step()
        return loss
    return net, step


def profile_step(bench, step, seconds, steps=3):
    """Return waits, launches, kernels and their fraction of the step's time; on a CPU kernels are operators."""
    with torch.profiler.profile() as profile:
        for number in range(steps):
            step(number)
    launches = "cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpy", "cudaMemset"
    events = [event for event in profile.events() if not event.is_user_annotation]
    kernels = [event for event in events if event.device_type.name == bench.device.type.upper()]
    return {"waits": sum(event.name == "cudaStreamSynchronize" for event in events) / steps,
            "launches": sum(event.name.startswith(launches) for event in events) / steps,
            "kernels": round(len(kernels) / steps),
            "busy": sum(event.time_range.elapsed_us() for event in kernels) / 1e6 / steps / seconds}


def seconds_of(bench, function, *arguments):
    """Return the mean time of a call, after some that do not count."""
    synchronize = torch.cuda.synchronize if bench.cuda else lambda: None
    for repeats in (5, 20) if bench.cuda else (1, 2):
        synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            function(*arguments)
        synchronize()
    return (time.perf_counter() - start) / repeats


def measure_rates(bench, size):
    source = torch.rand(4 * size, size, device=bench.device)
    bench.copy_rate = 8 * source.numel() / seconds_of(bench, torch.empty_like(source).copy_, source)
    factor = torch.randn(size, size, device=bench.device, dtype=bench.dtype)
    bench.matrix_rate = 2 * size ** 3 / seconds_of(bench, torch.mm, factor, factor)
    return {"copy TB/s": bench.copy_rate / 1e12, "matrix TFLOP/s": bench.matrix_rate / 1e12}


def measure_training(bench, backbone, batch, mode):
    (net, step), losses = make_step(bench, backbone, batch, mode), []
    seconds = seconds_of(bench, lambda: losses.append(step(len(losses))))
    macs, moved = count_work(backbone)
    moved = bench.dtype.itemsize * batch * moved + 20 * sum(tensor.numel() for tensor in net.parameters())
    floor = max(moved / bench.copy_rate, 6 * batch * macs / bench.matrix_rate)
    eager = bench.losses.setdefault((backbone, batch), losses)
    metrics = {"ms": 1e3 * seconds, "img/s": round(batch / seconds), "floor img/s": round(batch / floor),
               "loss difference": max(abs(a - b) / abs(a) for a, b in zip(eager, losses))}
    with suppress(Exception):  # a profiler that fails does not cost the speed
        metrics |= profile_step(bench, step, seconds)
    return metrics


def measure_head(bench, batch, dimensions, classes):
    head = ArcMarginProduct(dimensions, classes, 64.0, 0.5).to(bench.device)
    embeddings = torch.randn(batch, dimensions, device=bench.device, requires_grad=True)
    labels = torch.randint(classes, (batch,), device=bench.device)

    def compute():
        head.weight.grad = embeddings.grad = None
        head.losses(embeddings, labels)[0].mean().backward()

    seconds = seconds_of(bench, compute)
    with float32_products(bench.device):
        product = seconds_of(bench, torch.mm, embeddings.detach(), head.weight.detach().T)
    return {"ms": 1e3 * seconds, "floor ms": 3e3 * product}


def measure_end_to_end(bench, batch, images):
    """Run train.py for two epochs on JPEG files. The second counts."""
    with tempfile.TemporaryDirectory() as folder:
        for label, face in enumerate(synthetic_faces(images // 16)):
            Image.fromarray(face.numpy()).save(f"{folder}/{label}.jpg", quality=95)
        lines = [f"{label};{folder}/{label}.jpg\n" for label in range(images // 16)] * 16
        Path(folder, "cls_train.txt").write_text("".join(lines), encoding="utf-8")
        command = [sys.executable, TRAIN, "--epochs", 2, "--val-split", 0, "--batch-size", batch,
                   "--num-workers", available_cores(), "--device", bench.device, *["--bf16"] * bench.cuda]
        result = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, encoding="utf-8", timeout=150)
        if result.returncode:
            raise RuntimeError(result.stderr.strip().splitlines()[-1])
        log, = Path(folder).glob("logs/*/log.csv")
        row = list(csv.DictReader(log.read_text(encoding="utf-8").splitlines()))[-1]
    return {"img/s": round(float(row["images_per_second"])), "data_wait": float(row["data_wait"])}


def plan(cuda):
    """Yield measurements and their arguments."""
    if not cuda:
        yield measure_rates, (256,)
        yield measure_training, ("mobilefacenet", 4, "eager")
        yield measure_head, (4, 32, 1000)
        yield measure_end_to_end, (4, 32)
        return
    yield measure_rates, (8192,)
    yield measure_head, (512, 128, 360_232)
    yield measure_end_to_end, (512, 30_720)
    yield measure_end_to_end, (64, 9_600)
    yield measure_training, ("iresnet50", 128, "eager")
    for mode in ("eager", "compile+layout", "compile", "graph", "compile+layout+graph"):
        yield measure_training, ("mobilefacenet", 64, mode)
        yield measure_training, ("mobilefacenet", 512, mode)
    yield measure_training, ("iresnet50", 128, "graph")


def measure_all(bench, only, budget):
    """Take the measurements of the plan that begin within `budget` seconds. Print and write a row for each."""
    start, rows, columns = time.perf_counter(), [], None
    for measure, arguments in plan(bench.cuda):
        name = measure.__name__.removeprefix("measure_")
        if name not in [*only, "rates"]:
            continue
        row = {"measurement": name, **dict(zip(list(inspect.signature(measure).parameters)[1:], arguments))}
        try:
            if time.perf_counter() - start > budget:
                raise TimeoutError("not measured")
            row |= measure(bench, *arguments)
        except Exception as error:  # whatever a compiler, a capture or the device raises: the next one may work
            row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        torch._dynamo.reset()
        if bench.cuda:
            row["peak GB"] = torch.cuda.max_memory_reserved() / 1e9
            gc.collect()  # a compiled network is in a cycle
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        if columns != list(row):
            columns = list(row)
            print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
        cells = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()]
        print(f"| {' | '.join(cells)} |", flush=True)
        rows.append(row)
        Path("gpu.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


@script
def main():
    parser, kinds = SettingsParser(__doc__), ("training", "head", "end_to_end")
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds, help="take these measurements")
    parser.add_argument("--seconds", type=float, default=420, help="start no measurement later")
    parser.add_argument("--device", default="auto", help="cuda, cuda:N or cpu")
    args = parser.parse_args()
    device = choose_device(args.device)
    cuda = device.type == "cuda"
    bench = SimpleNamespace(device=device, cuda=cuda, dtype=torch.bfloat16 if cuda else torch.float32, losses={})
    if cuda:
        tune_cuda(device)
    print(describe_device(device), "PyTorch", torch.__version__)
    measure_all(bench, args.only, args.seconds)


if __name__ == "__main__":
    main()
