"""last.pt: runs that are killed or stopped and resumed, and files that cannot be resumed."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, assert_user_error
from training_data import (
    QUICK,
    assert_same_weights,
    make_args,
    make_state,
    only_run,
    train_command,
    weights,
    write_faces,
)

from utils.common.errors import UserError
from utils.training.checkpoint import check_resumed_args, read_checkpoint, save_checkpoint
from utils.training.losses import LabelLoss
from utils.training.run import Run, StopRequest

EPOCHS = 2


@pytest.fixture
def annotation(shared, tmp_path):
    return write_faces(shared, tmp_path / "cls_train.txt")


def start_and_signal(arguments, folder, number, after, group=False):
    """Start train.py, wait until its last.pt has passed `after` steps, send a signal. -> (status, stdout, stderr)."""
    process = subprocess.Popen(train_command(*arguments), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               encoding="utf-8", start_new_session=True)
    deadline = time.time() + 100
    while time.time() < deadline and process.poll() is None:
        found = list((folder / "logs").glob("*/last.pt"))
        if found and torch.load(found[0], weights_only=True)["step"] >= after:
            break
        time.sleep(0.02)
    os.killpg(process.pid, number) if group else process.send_signal(number)
    stdout, stderr = process.communicate(timeout=100)
    return process.returncode, stdout, stderr


@pytest.mark.parametrize("extra", [
    ["--num-workers", 0],
    ["--num-workers", 2, "--ema", 0.9, "--accumulate", 2, "--backbone", "mobilenet", "--batch-size", 4, "--val-split",
     0.7],
    ["--num-workers", 0, "--teacher", "published", "--augment", "affine", "color", "mixup"],
], ids=["plain", "workers, EMA, accumulation, dropout", "teacher"])
def test_a_killed_run_resumed_ends_with_the_same_weights(run_script, annotation, published_weights, tmp_path, extra):
    extra = [published_weights if value == "published" else value for value in extra]
    arguments = [*QUICK, "--annotation-path", annotation, "--epochs", EPOCHS, "--val-split", 0.1,
                 "--checkpoint-every", 0.00001, *extra]
    whole = run_script("train.py", *arguments, "--save-dir", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    status, _, _ = start_and_signal(arguments, tmp_path, signal.SIGKILL, after=2)
    assert status == -signal.SIGKILL
    run = only_run(tmp_path / "logs")
    state = torch.load(run / "last.pt", weights_only=True)
    assert state["step"] < torch.load(only_run(tmp_path / "whole") / "last.pt", weights_only=True)["step"]
    resumed = run_script("train.py", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert f"resumed after step {state['step']}" in resumed.stdout
    assert_same_weights(only_run(tmp_path / "whole"), run)


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_prints_the_command_that_continues(annotation, tmp_path, number, status):
    arguments = [*QUICK, "--annotation-path", annotation, "--epochs", 50, "--num-workers", 2,
                 "--checkpoint-every", 0.0001]
    code, stdout, stderr = start_and_signal(arguments, tmp_path, number, after=2)
    assert code == status, stderr
    run = only_run(tmp_path / "logs")
    state = torch.load(run / "last.pt", weights_only=True)
    assert f"stopped after step {state['step']}" in stdout
    assert f"--resume {run.relative_to(tmp_path)}" in stdout
    assert "Traceback" not in stderr


@pytest.fixture(scope="module")
def finished(shared, tmp_path_factory):
    """A folder with a finished one-epoch run in it."""
    folder = tmp_path_factory.mktemp("finished")
    annotation = write_faces(shared, folder / "cls_train.txt")
    subprocess.run(train_command(*QUICK, "--annotation-path", annotation, "--epochs", 1, "--num-workers", 0),
                   cwd=folder, check=True, capture_output=True)
    return folder


def test_a_resume_with_other_settings_is_refused_and_can_be_forced(run_script, finished):
    refused = run_script("train.py", "--resume", "--m", 0.4, "--init-lr", 0.1, "--epochs", 2, cwd=finished)
    assert_user_error(refused, "m was 0.5, is 0.4", "init_lr was 0.05, is 0.1", "--force")


def test_what_the_saved_state_does_not_fit_is_refused_even_by_force(run_script, finished):
    refused = run_script("train.py", "--resume", "--batch-size", 4, "--epochs", 2, "--force", cwd=finished)
    assert_user_error(refused, "batch_size was 8, is 4", "--model-path")


def test_a_resume_with_other_images_is_refused(run_script, finished, shared, tmp_path):
    other = write_faces(shared, tmp_path / "other.txt", skip=5)
    refused = run_script("train.py", "--resume", "--annotation-path", other, cwd=finished)
    assert_user_error(refused, "training images", "--force")


def test_a_resume_with_another_teacher_in_the_old_ones_file_is_refused(tmp_path):
    def args_with(content):
        (tmp_path / "teacher.pth").write_bytes(content)
        return make_args("--teacher", tmp_path / "teacher.pth")

    saved = vars(args_with(b"one"))
    check_resumed_args(saved, args_with(b"one"))
    with pytest.raises(UserError, match="teacher_sha256"):
        check_resumed_args(saved, args_with(b"another"))


def test_what_ends_an_evaluation_does_not_cost_the_epoch(run_script, annotation, tmp_path):
    code = ("import train\nfrom utils.common.errors import UserError\n"
            "def finish_epoch(*_): raise UserError('an image cannot be read')\n"
            "train.finish_epoch = finish_epoch\ntrain.main()")
    arguments = [*QUICK, "--annotation-path", annotation, "--epochs", 1, "--num-workers", 0]
    ended = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=tmp_path, capture_output=True,
                           encoding="utf-8", env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=100)
    assert_user_error(ended, "an image cannot be read")
    state = torch.load(only_run(tmp_path / "logs") / "last.pt", weights_only=True)
    assert state["step"] == state["batch"] == 5 and not state["rows"]
    resumed = run_script("train.py", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    state = torch.load(only_run(tmp_path / "logs") / "last.pt", weights_only=True)
    assert state["step"] == 5 and state["epoch"] == len(state["rows"]) == 1


def test_a_resume_without_a_run_says_so(run_script, tmp_path):
    assert_user_error(run_script("train.py", "--resume"), "no run in logs")
    assert_user_error(run_script("train.py", "--resume", tmp_path / "nowhere"), "nowhere does not exist")


def test_weights_are_not_a_checkpoint_to_resume(run_script, published_weights):
    assert_user_error(run_script("train.py", "--resume", published_weights), "--model-path")


def test_a_forced_resume_goes_on_with_the_new_settings(run_script, finished):
    forced = run_script("train.py", "--resume", "--epochs", 2, "--weight-decay", 0.25, "--force", cwd=finished)
    assert forced.returncode == 0, forced.stderr
    assert "epochs was 1, is 2" in forced.stdout and "weight_decay was [0.0005], is [0.25]" in forced.stdout
    run = only_run(finished / "logs")
    assert len(list(run.glob("ep*.pth"))) == 2
    state = torch.load(run / "last.pt", weights_only=True)
    assert [group["weight_decay"] for group in state["optimizer"]["param_groups"]] == [0.25, 0.25, 0]
    assert not {"force", "resume"} & state["settings"].keys()  # the next start is to ask again


@pytest.fixture
def train_here(call_script, annotation, monkeypatch):
    """train_here(flags) -> (result, the run's folder) of a run in this process that is to end soon."""
    monkeypatch.setattr(StopRequest, "listen", lambda self: None)

    def run(*flags):
        result = call_script("train.py", *QUICK, "--annotation-path", annotation, "--epochs", 3, "--num-workers", 0,
                             "--warmup-epochs", 0, *flags)
        return result, only_run(annotation.parent / "logs")
    return run


def test_a_run_that_explodes_stops_and_writes_no_weights(train_here):
    """The loss of the first step is finite, and so is its gradient; the weights after it are not."""
    result, run = train_here("--no-scale-lr", "--init-lr", 1e38, "--checkpoint-every", 1e-9)
    assert_user_error(result, "arcface.conv1", "--init-lr", "step 1")
    assert not list(run.glob("*.p*t*"))


def test_an_error_that_is_no_user_error_comes_after_the_state_is_saved(train_here, monkeypatch):
    forward, steps = LabelLoss.forward, iter(range(100))

    def run_out_of_memory(self, *inputs):
        if next(steps) == 2:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, *inputs)
    monkeypatch.setattr(LabelLoss, "forward", run_out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        train_here()
    [path] = Path("logs").glob("*/last.pt")
    assert torch.load(path, weights_only=True)["step"] == 2


def test_the_averaged_weights_are_what_is_saved(run_script, annotation, tmp_path):
    result = run_script("train.py", *QUICK, "--annotation-path", annotation, "--epochs", 1, "--num-workers", 0,
                        "--ema", 0.99)
    assert result.returncode == 0, result.stderr
    run = only_run(tmp_path / "logs")
    state = torch.load(run / "last.pt", weights_only=True)
    saved = weights(run)
    name = "arcface.sep.weight"
    assert torch.equal(saved[name], state["ema"]["net"][name])
    assert not torch.equal(saved[name], state["model"][name])


def test_a_signal_to_the_whole_process_group_still_saves(annotation, tmp_path):
    arguments = [*QUICK, "--annotation-path", annotation, "--epochs", 50, "--num-workers", 2,
                 "--checkpoint-every", 0.0001]
    code, stdout, stderr = start_and_signal(arguments, tmp_path, signal.SIGTERM, after=2, group=True)
    assert code == 143, stderr
    assert "continue with" in stdout and "Traceback" not in stderr


@pytest.fixture
def checkpoint(tmp_path):
    state, args = make_state()
    save_checkpoint(state, Run(tmp_path, {"data_sha256": ""}), args)
    return tmp_path / "last.pt"


def test_a_damaged_file_and_one_of_another_version_are_user_errors(checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    whole = checkpoint.read_bytes()
    middle = len(whole) // 2
    for damaged in (whole[:middle] + bytes([whole[middle] ^ 16]) + whole[middle + 1:], whole[:middle], b""):
        checkpoint.write_bytes(damaged)
        with pytest.raises(UserError, match=r"last\.pt") as caught:
            read_checkpoint(checkpoint)
        assert "\n" not in str(caught.value)
    del content["loss_scale"]
    torch.save(content, checkpoint)
    with pytest.raises(UserError, match=r"another version of this program \(loss_scale missing\).*--model-path"):
        read_checkpoint(checkpoint)


@pytest.mark.parametrize("change", [
    lambda state: {"model": {name: value for name, value in state["model"].items() if "last_bn" not in name}},
    lambda state: {"model": state["model"] | {"head.weight": torch.ones(7, 128)}},
    lambda state: {"optimizer": {"state": {}, "param_groups": []}}, lambda state: {"ema": {}, "optimizer": {}}],
    ids=["names", "shape", "groups", "nothing"])
def test_a_state_that_does_not_fit_is_a_user_error_of_one_line(checkpoint, change):
    content = read_checkpoint(checkpoint)
    with pytest.raises(UserError, match=r"last\.pt does not fit .*--model-path") as caught:
        make_state()[0].load_state_dict(content | change(content))
    assert "\n" not in str(caught.value)


def test_equal_states_are_equal_files(checkpoint):
    first = checkpoint.read_bytes()
    state, args = make_state()
    save_checkpoint(state, Run(checkpoint.parent, {"data_sha256": ""}), args)
    assert checkpoint.read_bytes() == first
