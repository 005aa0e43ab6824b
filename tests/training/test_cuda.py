"""Training and prediction on a real CUDA device: the CPU's values, one wait a step, runs that stop and resume."""
import csv
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_data import make_state, noise_batch, only_run, weights

from nets.head import ArcMarginProduct
from train import train_step
from utils.common.device import tune_cuda
from utils.data.augmentation import KINDS
from utils.training.losses import DistillationLoss, LabelLoss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="for a machine with a CUDA device")

ROOT = Path(__file__).parents[2]
BUNDLED = str(ROOT / "model_data" / "arcface_mobilefacenet.pth")
CUDA = torch.device("cuda", 0)


def state_of(flags, device):
    def loss(net):
        if "--teacher" not in flags:
            return LabelLoss(net)
        table = torch.randn(8, 128, generator=torch.Generator().manual_seed(1)).half()
        return DistillationLoss(net, torch.eye(128, device=device), table, 1.0)

    return make_state(*flags.split(), "--batch-size", 8, "--epochs", 10, classes=40, count=80, device=device, loss=loss)


def losses_of(state, args, steps):
    batches = [noise_batch(8, seed, torch.randint(0, 40, (8,)).tolist()) for seed in range(steps)]
    return [train_step(state, [batch] * args.accumulate, args)[0] for batch in batches]


@pytest.fixture(scope="module")
def annotation(tmp_path_factory):
    """Write ten images of each of four identities, a pattern with noise. Return the path of their annotation."""
    folder = tmp_path_factory.mktemp("faces")
    random, lines = np.random.default_rng(1), []
    for label in range(4):
        pattern = random.integers(0, 200, (14, 14, 3))
        for number in range(10):
            noisy = pattern.repeat(8, 0).repeat(8, 1) + random.integers(0, 56, (112, 112, 3))
            path = folder / str(label) / f"{number}.jpg"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(noisy.astype(np.uint8)).save(path, quality=95)
            lines.append(f"{label};{path}\n")
    (folder / "cls_train.txt").write_text("".join(lines), encoding="utf-8")
    return folder / "cls_train.txt"


@pytest.fixture(autouse=True)
def as_train_sets_it(monkeypatch):
    precision = torch.get_float32_matmul_precision()
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    tune_cuda(CUDA)
    yield
    torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize(("flags", "apart"), [
    (f"--model-path {BUNDLED} --init-lr 1e-3", 0.01), (f"--model-path {BUNDLED} --init-lr 1e-3 --bf16", 0.1),
    (f"--model-path {BUNDLED} --teacher {BUNDLED} --init-lr 1e-3 --optimizer-type adamw", 0.01)])
def test_the_losses_are_those_of_the_cpu(flags, apart):
    values = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        values.append(losses_of(*state_of(flags, device), 3))
    on_cpu, on_cuda = values
    assert on_cuda == pytest.approx(on_cpu, rel=apart)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_the_head_computes_in_float32_under_autocast(autocast):
    torch.manual_seed(3)
    head = ArcMarginProduct(512, 3000, 64.0, 0.5)
    embeddings, labels = torch.randn(32, 512, requires_grad=True), torch.randint(0, 3000, (32,))
    exact = ArcMarginProduct(512, 3000, 64.0, 0.5).double()
    exact.load_state_dict(head.double().state_dict())
    exact.losses(embeddings.double(), labels)[0].mean().backward()
    here = ArcMarginProduct(512, 3000, 64.0, 0.5).to(CUDA)
    here.load_state_dict(head.float().state_dict())
    inputs = embeddings.detach().to(CUDA).requires_grad_()
    with torch.autocast("cuda", autocast, enabled=autocast is not None):
        losses = here.losses(inputs, labels.to(CUDA))[0]
    losses.mean().backward()
    torch.testing.assert_close(losses.cpu().double(), exact.losses(embeddings.double(), labels)[0], rtol=1e-5, atol=0)
    for found, expected in ((here.weight.grad, exact.weight.grad), (inputs.grad, embeddings.grad)):
        assert (found.cpu() - expected).norm() / expected.norm() < 1e-4


@pytest.mark.parametrize("flags", [
    "--ema 0.9 --accumulate 2 --bf16", f"--optimizer-type adamw --grad-clip 5 --fp16 --augment {' '.join(KINDS)}",
    "--sample-rate 0.3",
    f"--teacher {BUNDLED} --label-weight 1 --bf16"])
def test_a_step_waits_once(flags):
    state, args = state_of(flags, CUDA)
    losses_of(state, args, 2)
    try:
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as met:
            warnings.simplefilter("always")
            losses_of(state, args, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(one.filename) + f":{one.lineno}" for one in met if "synchroniz" in str(one.message)]
    assert len(waits) == 1, waits


@pytest.mark.parametrize("flags", ["--bf16", "--fp16", "--backbone iresnet18 --bf16",
                                   "--backbone mobilenet", "--bf16 --compile"])
def test_a_run_trains_validates_and_resumes(run_script, tmp_path, annotation, flags):
    arguments = ["--annotation-path", annotation, "--batch-size", "8", "--val-split", "0.2", "--no-lfw-eval"]
    result = run_script("train.py", *arguments, *flags.split(), "--epochs", "2", timeout=300)
    assert result.returncode == 0, result.stderr
    assert "cuda" in result.stdout
    run = only_run(tmp_path / "logs")
    result = run_script("train.py", "--resume", run, "--epochs", "3", "--force", timeout=300)
    assert result.returncode == 0, result.stderr
    rows = list(csv.DictReader((run / "log.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert all(value.device.type == "cpu" for value in weights(run).values())
    images = [line.split(";")[1] for line in annotation.read_text().splitlines()]
    arguments = [*images[:2], "--model-path", run, "--align", "no"]
    on_cuda, on_cpu = (run_script("predict.py", *arguments, "--device", device) for device in ("cuda", "cpu"))
    assert on_cuda.returncode == 0, on_cuda.stderr
    distances = [float(re.search(r"\d\.\d{3}", result.stdout)[0]) for result in (on_cuda, on_cpu)]
    assert distances[0] == pytest.approx(distances[1], abs=0.01)


def torchrun(folder, ranks, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.run([*command, str(ROOT / "train.py"), *map(str, arguments)], cwd=folder, capture_output=True,
                          encoding="utf-8", env=os.environ | {"PYTHONUTF8": "1"}, timeout=300)


def test_one_rank_under_torchrun_trains_with_nccl(tmp_path, annotation):
    """More than one needs more than one GPU."""
    result = torchrun(tmp_path, 1, "--annotation-path", annotation, "--batch-size", "8", "--epochs", "1",
                      "--no-lfw-eval")
    assert result.returncode == 0 and (only_run(tmp_path / "logs") / "best.pth").is_file(), result.stderr
