"""Two gloo processes under torchrun: the same figures as one, and none left behind."""
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_data import QUICK, assert_same_weights, only_run, write_faces

ROOT = Path(__file__).parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(command, folder, timeout=150):
    environment = os.environ | {"PYTHONUTF8": "1"}
    return subprocess.run([*map(str, command)], cwd=folder, capture_output=True, encoding="utf-8", env=environment,
                          timeout=timeout)


def worker(folder, processes):
    launcher = TORCHRUN if processes == 2 else [sys.executable]
    output = folder / f"{processes}.pt"
    result = run([*launcher, ROOT / "tests" / "distributed_worker.py", output], folder)
    assert result.returncode == 0, result.stderr
    return torch.load(output, weights_only=True)


def test_two_processes_have_the_figures_of_one_and_the_same_parameters(tmp_path):
    one, two = worker(tmp_path, 1), worker(tmp_path, 2)
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert two["correct"] == one["correct"]
    scale = one["gradient"].abs().max()
    assert (two["gradient"] - one["gradient"]).abs().max() / scale < 1e-5
    assert len(two["hashes"]) == 2 and len(set(two["hashes"])) == 1  # after a step with BatchNorm in training mode


@pytest.fixture(scope="module")
def annotation(shared, tmp_path_factory):
    return write_faces(shared, tmp_path_factory.mktemp("data") / "cls_train.txt")


def test_two_processes_train_and_resume_bit_for_bit(annotation, tmp_path):
    command = [*TORCHRUN, ROOT / "train.py", *QUICK, "--annotation-path", annotation, "--num-workers", 0,
               "--val-split", 0.1]
    whole = run([*command, "--epochs", 2, "--save-dir", "whole"], tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.count("epoch 1/2 ") == 1, "only rank 0 prints"
    stopped = subprocess.Popen([*map(str, command), "--epochs", "2", "--checkpoint-every", "0.0001"], cwd=tmp_path,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
    wait_for_checkpoint(tmp_path / "logs", stopped)
    stopped.send_signal(signal.SIGTERM)  # torchrun passes it on
    stopped.communicate(timeout=100)
    logs = only_run(tmp_path / "logs")
    assert torch.load(logs / "last.pt", weights_only=True)["epoch"] < 2
    resumed = run([*TORCHRUN, ROOT / "train.py", "--resume"], tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_weights(only_run(tmp_path / "whole"), logs)


def test_a_run_of_two_processes_goes_on_with_one_and_says_what_differs(annotation, tmp_path):
    command = [*QUICK, "--annotation-path", annotation, "--num-workers", 0]
    first = run([*TORCHRUN, ROOT / "train.py", *command, "--epochs", 1], tmp_path)
    assert first.returncode == 0, first.stderr
    second = run([sys.executable, ROOT / "train.py", "--resume", "--epochs", 2, "--force"], tmp_path)
    assert second.returncode == 0, second.stderr
    assert "had 2 processes and has 1 now" in second.stdout and "not bit-exact" in second.stdout


def test_when_one_process_dies_the_others_leave(annotation, tmp_path):
    command = [*TORCHRUN, ROOT / "train.py", *QUICK, "--annotation-path", annotation, "--num-workers", 0,
               "--epochs", 500, "--checkpoint-every", 0.0001]
    process = subprocess.Popen([*map(str, command)], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               encoding="utf-8")
    wait_for_checkpoint(tmp_path / "logs", process)
    ranks = children(process.pid)
    os.kill(ranks[-1], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)


def wait_for_checkpoint(logs, process):
    deadline = time.time() + 100
    while not list(logs.glob("*/last.pt")):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.05)


def children(pid):
    listing = subprocess.run(["ps", "-o", "pid=,ppid=", "-A"], capture_output=True, encoding="utf-8").stdout
    return sorted(int(child) for child, parent in re.findall(r"(\d+)\s+(\d+)", listing) if int(parent) == pid)


def test_a_global_batch_that_does_not_divide_is_refused(annotation, tmp_path):
    result = run([*TORCHRUN, ROOT / "train.py", "--annotation-path", annotation, "--batch-size", 7], tmp_path)
    assert result.returncode != 0
    assert "make it a multiple of 2" in result.stderr
