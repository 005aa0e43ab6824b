"""Speed of training and embedding on one GPU: eager, compiled and captured in a CUDA graph, each beside its floor.

    python benchmarks/gpu.py                                      everything, most important first, within 8 minutes
    python benchmarks/gpu.py --only training --seconds 200        some measurements
    python benchmarks/gpu.py --device cpu                         a small size of the same

Faces are synthetic. Prints each measurement and, at the end, the tables for docs/speed.md; writes gpu.json. An error
or a lack of time is noted in the row. The mode of a training step is "eager" or options joined by "+": compile
(Inductor), layout (force_layout_optimization), overhead (Inductor's CUDA graphs), graph (forward, loss and backward in
one CUDA graph), unread (the loss is not read: the limit of reading it a step late).

Floor: the larger of bytes over the measured copy rate and operations over the measured matrix rate. In training each
convolution moves its input and output three times, each BatchNorm its input eight times, SGD each parameter five times;
activations are fused; a MAC is six operations. In embedding convolutions move theirs once; a MAC is two operations.

Plan for 15 minutes on an H100 or H200: run everything, decide as follows, and repeat what is in doubt with --only.
1. busy (time in kernels / time of the step) is above 0.8 for eager at batch 64: a CUDA graph cannot help there.
2. graph is 1.5 times as fast as eager at 64, with a loss difference like that of the second eager row: capture.
3. compile+layout or compile is 1.15 times as fast as eager at 512: compile, with the faster layout. At 64 compare
   compile+layout+graph with graph. overhead has to beat it.
4. graph+unread is 1.1 times as fast as graph at 64: read one step late.
5. end_to_end is below 0.9 of training at the same batch: the loader is the limit, not the step.
"""
import csv
import gc
import inspect
import json
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from gpu_step import DTYPES, capture_step, count_work, make_step, profile_step, synthetic_faces

from nets.arcface import ArcfaceNet
from nets.head import ArcMarginProduct
from nets.softmax import float32_products
from utils.common.device import available_cores, choose_device, describe_device, tune_cuda
from utils.common.errors import SettingsParser, script
from utils.evaluation.embedding import embed_batch, inference_copy

ROOT = Path(__file__).parent.parent


def seconds_of(bench, function, *arguments):
    """Return the mean time of a call, after some that do not count."""
    for repeats in (5, 20) if bench.cuda else (1, 2):
        bench.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            function(*arguments)
        bench.synchronize()
    return (time.perf_counter() - start) / repeats


def measure_rates(bench, size):
    source = torch.rand(4 * size, size, device=bench.device)
    bench.rates["copy"] = 8 * source.numel() / seconds_of(bench, torch.empty_like(source).copy_, source)
    for name, dtype in DTYPES.items():
        factor = torch.randn(size, size, device=bench.device, dtype=dtype)
        with float32_products(bench.device) if name == "float32" else nullcontext():
            bench.rates[name] = 2 * size ** 3 / seconds_of(bench, torch.mm, factor, factor)
    yield {f"{name} T/s": rate / 1e12 for name, rate in bench.rates.items()}


def measure_training(bench, backbone, batch, precision, mode, classes):
    if "graph" in mode and not bench.cuda:
        raise RuntimeError("CUDA graphs need a CUDA device")
    net, optimizer, step = make_step(bench.device, backbone, batch, precision, mode, classes)
    start = time.perf_counter()
    losses = [step(0)]
    first_step = time.perf_counter() - start
    seconds = seconds_of(bench, lambda: losses.append(step(len(losses))))
    (macs, moved, _), head = count_work(backbone), net.head.weight.numel()
    moved = DTYPES[precision].itemsize * batch * moved + 20 * sum(tensor.numel() for tensor in net.parameters())
    floor = max(moved / bench.rates["copy"],
                6 * batch * (macs / bench.rates[precision] + head / bench.rates["float32"]))
    reference = bench.losses.setdefault((backbone, batch, precision, classes), [float(loss) for loss in losses])
    yield {"ms": 1e3 * seconds, "img/s": batch / seconds, "floor img/s": batch / floor, "first step s": first_step,
           "loss difference": max(abs(a - float(b)) / abs(a) for a, b in zip(reference, losses))}
    yield {"optimizer ms": 1e3 * seconds_of(bench, optimizer.step)}
    yield profile_step(bench, step, seconds)


def measure_head(bench, batch, dimensions, classes):
    head = ArcMarginProduct(dimensions, classes, 64.0, 0.5).to(bench.device)
    embeddings = torch.randn(batch, dimensions, device=bench.device, requires_grad=True)
    labels = torch.randint(classes, (batch,), device=bench.device)

    def compute(labels):
        head.weight.grad = embeddings.grad = None
        loss = head.losses(embeddings, labels)[0].mean()
        loss.backward()
        return loss.detach()

    eager, weight, other = seconds_of(bench, compute, labels), head.weight.detach(), embeddings.detach()
    logits = torch.randn(batch, classes, device=bench.device)
    with float32_products(bench.device):
        products = seconds_of(bench, lambda: (other @ weight.T, logits @ weight, logits.T @ other))
    yield {"ms": 1e3 * eager, "its three products ms": 1e3 * products, "ratio": eager / products}
    if bench.cuda:
        yield {"graph ratio": seconds_of(bench, capture_step(compute), labels) / products}


def measure_embedding(bench, backbone, precision, batch, images):
    net, batches = inference_copy(ArcfaceNet(None, backbone)).to(bench.device), synthetic_faces(images).split(batch)
    seconds = seconds_of(bench, lambda: [embed_batch(net, faces, bf16=precision == "bf16") for faces in batches])
    macs, _, moved = count_work(backbone)
    floor = max(DTYPES[precision].itemsize * moved / bench.rates["copy"], 2 * macs / bench.rates[precision])
    yield {"s": seconds, "img/s": images / seconds, "floor img/s": 1 / floor}


def measure_end_to_end(bench, batch, images, identities):
    """Run train.py for two epochs on JPEG files. The second counts."""
    with tempfile.TemporaryDirectory() as folder:
        for number, face in enumerate(synthetic_faces(identities)):
            Image.fromarray(face.numpy()).save(f"{folder}/{number}.jpg", quality=95)
        lines = [f"{number % identities};{folder}/{number % identities}.jpg\n" for number in range(images)]
        Path(folder, "cls_train.txt").write_text("".join(lines), encoding="utf-8")
        command = [sys.executable, ROOT / "train.py", "--epochs", 2, "--val-split", 0, "--batch-size", batch,
                   "--num-workers", available_cores(), "--device", bench.device, *["--bf16"] * bench.cuda]
        result = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, encoding="utf-8", timeout=150)
        if result.returncode:
            raise RuntimeError(result.stderr.strip().splitlines()[-1])
        log, = Path(folder).glob("logs/*/log.csv")
        row = list(csv.DictReader(log.read_text(encoding="utf-8").splitlines()))[-1]
    yield {"img/s": float(row["images_per_second"]), "data_wait": float(row["data_wait"])}


def training(modes, backbone="mobilefacenet", batches=(64, 512), precision="bf16", classes=10_575):
    for batch in batches:
        for mode in modes.split():
            yield 60 if "compile" in mode else 8, measure_training, (backbone, batch, precision, mode, classes)


def plan(cuda):
    """Yield (seconds it may take, measurement, arguments), most important first."""
    if not cuda:
        yield 1, measure_rates, (256,)
        yield 1, measure_head, (4, 32, 1000)
        yield 1, measure_embedding, ("mobilefacenet", "tf32", 4, 10)
        yield from training("eager graph compile+layout", batches=(4,), precision="tf32", classes=100)
        yield 20, measure_end_to_end, (4, 32, 8)
        return
    yield 10, measure_rates, (8192,)
    yield from training("eager graph")
    yield from training("compile+layout compile+layout+graph")
    yield from training("eager graph", "iresnet50", (128,))
    yield 40, measure_end_to_end, (512, 30_720, 1000)
    yield 50, measure_end_to_end, (64, 9_600, 1000)
    for classes in (360_232, 10_575):
        yield 8, measure_head, (512, 128, classes)
        yield 8, measure_head, (128, 512, classes)
    yield from training("graph+unread eager", batches=(64,))
    yield from training("compile+layout+graph", "iresnet50", (128,))
    yield from training("compile", batches=(512,))
    yield from training("compile+layout+overhead", batches=(64,))
    for precision, other in (("tf32", "tf32"), ("bf16", "fp16")):
        yield 10, measure_embedding, ("mobilefacenet", precision, 256, 7701)
        yield from training("eager graph", precision=other)
    yield from training("eager graph", "iresnet50", (128,), classes=360_232)
    yield from training("eager graph", batches=(128, 256, 1024))
    yield from training("eager graph", "mobilenet")
    yield from training("compile+layout", "mobilenet", (512,))


def measure_all(bench, only, budget, output):
    """Take the measurements of the plan that fit into `budget` seconds. Return a row for each.

    A measurement yields its figures in parts, most important first, so that those before an error are kept.
    """
    start, rows = time.perf_counter(), []
    for seconds, measure, arguments in plan(bench.cuda):
        name = measure.__name__.removeprefix("measure_")
        if name not in [*only, "rates"]:
            continue
        rows.append({"measurement": name, **dict(zip(list(inspect.signature(measure).parameters)[1:], arguments))})
        try:
            if time.perf_counter() - start + seconds > budget:
                raise TimeoutError("not measured")
            for figures in measure(bench, *arguments):
                rows[-1] |= figures
        except Exception as error:  # whatever a compiler, a capture or the device raises: the next one may work
            rows[-1]["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        torch._dynamo.reset()
        gc.collect()
        if bench.cuda:
            rows[-1]["peak GB"] = torch.cuda.max_memory_reserved() / 1e9
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        values = [text(value) for name, value in rows[-1].items() if name != "slowest ms"]
        print(f"{time.perf_counter() - start:5.0f} s ", *values, flush=True)
        Path(output).write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return rows


def text(value):
    return str(value) if not isinstance(value, float) else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def print_tables(rows):
    for name in dict.fromkeys(row["measurement"] for row in rows):
        chosen = [row for row in rows if row["measurement"] == name]
        columns = dict.fromkeys(column for row in chosen for column in row if column != "slowest ms")
        print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
        for row in chosen:
            print(f"| {' | '.join(text(row.get(column, '')) for column in columns)} |")


@script
def main():
    parser, kinds = SettingsParser(__doc__), ("training", "end_to_end", "head", "embedding")
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds, help="take these measurements")
    parser.add_argument("--seconds", type=float, default=470, help="start nothing that would end later")
    parser.add_argument("--device", default="auto", help="cuda, cuda:N or cpu")
    parser.add_argument("--output", default="gpu.json")
    args = parser.parse_args()
    device = choose_device(args.device)
    bench = SimpleNamespace(device=device, cuda=device.type == "cuda", rates={}, losses={},
                            synchronize=torch.cuda.synchronize if device.type == "cuda" else lambda: None)
    if bench.cuda:
        tune_cuda(device)
    print(describe_device(device), "PyTorch", torch.__version__)
    print_tables(measure_all(bench, args.only, args.seconds, args.output))


if __name__ == "__main__":
    main()
