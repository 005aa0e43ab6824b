"""Two gloo ranks compute the same values as one, also under torchrun."""
import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import read_json
from training_data import QUICK, assert_same_weights, make_args, only_run, weights, write_faces

from nets.arcface import ArcfaceNet
from utils.common.errors import UserError
from utils.data.annotation import read_annotation
from utils.data.dataset import EpochBatches, make_loaders
from utils.training.losses import LabelLoss
from utils.training.settings import check_ranks
from utils.training.state import TrainState
from utils.training.validation import validate

ROOT = Path(__file__).parents[2]
VALIDATED = 5  # images; an odd number shows that no image is validated twice
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(command, folder, timeout=150):
    environment = os.environ | {"PYTHONUTF8": "1"}
    return subprocess.run([*map(str, command)], cwd=folder, capture_output=True, encoding="utf-8", env=environment,
                          timeout=timeout)


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory):
    """Return the results of one rank, and of two."""
    folder = tmp_path_factory.mktemp("worker")
    result = run([sys.executable, ROOT / "tests" / "training" / "distributed_worker.py", folder], folder)
    assert result.returncode == 0, result.stderr
    return [torch.load(folder / f"{ranks}.pt", weights_only=True) for ranks in (1, 2)]


def test_two_ranks_compute_what_one_does_and_have_the_same_parameters(one_and_two):
    one, two = one_and_two
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert two["correct"] == one["correct"]
    scale = one["gradient"].abs().max()
    assert (two["gradient"] - one["gradient"]).abs().max() / scale < 1e-5
    for hashes in (two["hashes"], two["student"]):  # after a step with BatchNorm in training mode
        assert len(hashes) == 2 and len(set(hashes)) == 1
    learned, frozen = two["statistics"]
    assert len(set(learned)) == 2 and set(frozen) == {learned[0]}


@pytest.fixture(scope="module")
def annotation(shared, tmp_path_factory):
    return write_faces(shared, tmp_path_factory.mktemp("data") / "cls_train.txt")


def test_two_ranks_train_and_resume_bit_for_bit(annotation, tmp_path):
    command = [*TORCHRUN, ROOT / "train.py", *QUICK, "--annotation-path", annotation, "--num-workers", 0,
               "--val-split", VALIDATED / 40, "--ema", 0.9]
    whole = run([*command, "--epochs", 2, "--save-dir", "whole"], tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.count("epoch 1 ") == 1, "only rank 0 prints"
    assert f"{VALIDATED} held out" in whole.stdout
    assert_validated_as_saved(only_run(tmp_path / "whole"), annotation)
    stopped = subprocess.Popen([*map(str, command), "--epochs", "2", "--checkpoint-every", "0.0001"], cwd=tmp_path,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
    wait_for_checkpoint(tmp_path / "logs", stopped)
    stopped.send_signal(signal.SIGTERM)  # torchrun passes it on
    output, _ = stopped.communicate(timeout=100)
    assert "continue with: torchrun ... train.py --resume " in output
    logs = only_run(tmp_path / "logs")
    assert torch.load(logs / "last.pt", weights_only=True)["epoch"] < 2
    resumed = run([*TORCHRUN, ROOT / "train.py", "--resume"], tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_weights(only_run(tmp_path / "whole"), logs)


def assert_validated_as_saved(run, annotation):
    """Check that two ranks logged the validation metrics of the weights they saved, on every image once."""
    with open(run / "log.csv", encoding="utf-8") as file:
        *_, row = csv.DictReader(file)
    args = SimpleNamespace(**read_json(run / "settings.json"))
    net = ArcfaceNet(4)
    net.load_state_dict(weights(run))
    _, loader = make_loaders(*read_annotation(annotation), args, torch.device("cpu"))
    state = TrainState(args, net, LabelLoss(net), EpochBatches(35, 8, 1), torch.device("cpu"))
    assert len(loader.dataset) == VALIDATED
    found = validate(state, loader)
    assert found["val_loss"] == pytest.approx(float(row["val_loss"]), rel=1e-5)
    assert found["val_accuracy"] == pytest.approx(float(row["val_accuracy"]), rel=1e-5)


def wait_for_checkpoint(logs, process):
    deadline = time.time() + 100
    while not list(logs.glob("*/last.pt")):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.05)


def test_a_global_batch_that_does_not_divide_is_a_user_error():
    with pytest.raises(UserError, match=r"--batch-size 7 .* use a multiple of 2"):
        check_ranks(make_args("--batch-size", 7), torch.device("cpu"), 2)
