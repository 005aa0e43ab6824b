"""last.pt: runs that are killed or stopped and resumed, and files that cannot be resumed."""
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest import BUNDLED, assert_user_error
from training_data import (
    QUICK,
    assert_same_weights,
    make_args,
    make_state,
    noise_batch,
    only_run,
    train_command,
    write_faces,
)

from train import train_step
from utils.common.errors import UserError
from utils.training.checkpoint import check_resumed, find_checkpoint, read_checkpoint, save_checkpoint
from utils.training.losses import LabelLoss
from utils.training.run import Run, StopRequest
from utils.training.settings import make_parser


@pytest.fixture
def annotation(shared, tmp_path):
    return write_faces(shared, tmp_path / "cls_train.txt")


def last_state(logs):
    """Return the content of last.pt of the only run in logs."""
    return torch.load(only_run(logs) / "last.pt", weights_only=True)


def start_and_signal(arguments, folder, number):
    """Start train.py and signal all its processes after two steps. Return (status, stdout, stderr)."""
    process = subprocess.Popen(train_command(*arguments), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               encoding="utf-8", start_new_session=True)
    deadline = time.time() + 100
    while time.time() < deadline and process.poll() is None:
        if list(folder.glob("logs/*/last.pt")) and last_state(folder / "logs")["step"] >= 2:
            break
        time.sleep(0.02)
    with suppress(ProcessLookupError):  # it has ended
        os.killpg(process.pid, number)
    stdout, stderr = process.communicate(timeout=100)
    return process.returncode, stdout, stderr


def test_a_killed_run_resumed_ends_with_the_same_weights(run_script, annotation, published_weights, tmp_path):
    arguments = [*QUICK, "--annotation-path", annotation, "--epochs", 2, "--checkpoint-every", 0.00001, "--val-split",
                 0.1, "--num-workers", 2, "--ema", 0.9, "--accumulate", 2, "--batch-size", 4, "--model-path", BUNDLED,
                 "--teacher", published_weights, "--label-weight", 1, "--augment", "affine", "color", "mixup"]
    whole = run_script("train.py", *arguments, "--save-dir", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    status, _, _ = start_and_signal(arguments, tmp_path, signal.SIGKILL)
    assert status == -signal.SIGKILL
    step = last_state(tmp_path / "logs")["step"]
    assert step < last_state(tmp_path / "whole")["step"]
    resumed = run_script("train.py", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert f"resumed after step {step}" in resumed.stdout
    assert_same_weights(only_run(tmp_path / "whole"), only_run(tmp_path / "logs"))
    assert [row["epoch"] for row in last_state(tmp_path / "logs")["rows"]] == [1, 2]


def test_a_signal_to_all_processes_saves_and_prints_the_command_that_continues(annotation, tmp_path):
    arguments = [*QUICK, "--annotation-path", annotation, "--epochs", 50, "--num-workers", 2,
                 "--checkpoint-every", 0.0001]
    status, stdout, stderr = start_and_signal(arguments, tmp_path, signal.SIGTERM)
    assert status == 128 + signal.SIGTERM and "Traceback" not in stderr, stderr
    assert f"stopped after step {last_state(tmp_path / 'logs')['step']}" in stdout
    assert f"--resume {only_run(tmp_path / 'logs').relative_to(tmp_path)}" in stdout


def test_the_first_signal_is_a_request_to_stop_and_a_second_one_has_its_default_effect():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in handlers:
            stop = StopRequest()
            stop.listen()
            signal.raise_signal(number)
            assert stop.received == number and signal.getsignal(number) == signal.SIG_DFL
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.fixture(scope="module")
def finished(runner, shared, tmp_path_factory):
    """A folder with a finished one-epoch run in it."""
    folder = tmp_path_factory.mktemp("finished")
    annotation = write_faces(shared, folder / "cls_train.txt")
    result = runner.run("train.py", *QUICK, "--annotation-path", annotation, "--epochs", 1, "--num-workers", 0,
                        cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.parametrize("flags, words", [
    (["--m", 0.4, "--init-lr", 0.1], ["m was 0.5, is 0.4", "init_lr was 0.05, is 0.1", "--force"]),
    (["--batch-size", 4, "--force"], ["batch_size was 8, is 4", "--model-path"])])
def test_a_resume_with_other_settings_is_a_user_error(run_script, finished, flags, words):
    assert_user_error(run_script("train.py", "--resume", "--epochs", 2, *flags, cwd=finished), *words)


def test_a_resume_with_other_images_is_a_user_error(run_script, finished, shared, tmp_path):
    other = write_faces(shared, tmp_path / "other.txt", skip=5)
    result = run_script("train.py", "--resume", "--annotation-path", other, cwd=finished)
    assert_user_error(result, "images_sha256", "--force")


def test_a_resume_with_another_teacher_in_the_same_file_is_a_user_error(tmp_path):
    def args_with(content):
        (tmp_path / "teacher.pth").write_bytes(content)
        return make_args("--teacher", tmp_path / "teacher.pth")

    saved = vars(args_with(b"one"))
    check_resumed(saved, args_with(b"one"))
    with pytest.raises(UserError, match="teacher_sha256"):
        check_resumed(saved, args_with(b"another"))


def test_a_forced_resume_cannot_begin_to_train_the_head(tmp_path):
    (tmp_path / "teacher.pth").write_bytes(b"one")  # SGD's momentum of the head does not exist yet
    saved = vars(make_args("--teacher", tmp_path / "teacher.pth"))
    with pytest.raises(UserError, match=r"label_weight was 0\.0, is 0\.1.*--model-path"):
        check_resumed(saved, make_args("--teacher", tmp_path / "teacher.pth", "--label-weight", 0.1, "--force"))


def test_a_resume_can_switch_augmentation_and_milestones_off():
    parser = make_parser()
    parser.set_defaults(augment=["color"], milestones=[1.0])  # as parse_args() does with those of last.pt
    args = parser.parse_args(["--augment", "--milestones"])
    assert args.augment == args.milestones == []


def test_a_resume_without_the_state_of_a_run_is_a_user_error(call_script, published_weights, tmp_path):
    assert_user_error(call_script("train.py", "--resume"), "no run in logs")
    assert_user_error(call_script("train.py", "--resume", tmp_path / "nowhere"), "nowhere does not exist")
    assert_user_error(call_script("train.py", "--resume", published_weights), "--model-path")


def test_a_forced_resume_uses_the_new_settings(run_script, finished):
    forced = run_script("train.py", "--resume", "--epochs", 2, "--weight-decay", 0.25, "--force", cwd=finished)
    assert forced.returncode == 0, forced.stderr
    assert "epochs was 1, is 2" in forced.stdout and "weight_decay was [0.0005], is [0.25]" in forced.stdout
    state = last_state(finished / "logs")
    assert state["epoch"] == 2
    assert [group["weight_decay"] for group in state["optimizer"]["param_groups"]] == [0.25, 0.25, 0]
    assert not {"force", "resume"} & state["settings"].keys()  # they apply to one start


@pytest.fixture
def train_here(call_script, annotation, monkeypatch):
    """train_here(*flags) trains in this process and returns (result, the run's folder)."""
    monkeypatch.setattr(StopRequest, "listen", lambda self: None)

    def run(*flags):
        result = call_script("train.py", *QUICK, "--annotation-path", annotation, "--epochs", 1, "--num-workers", 0,
                             "--warmup-epochs", 0, *flags)
        return result, only_run(annotation.parent / "logs")
    return run


def test_an_error_in_the_evaluation_does_not_cost_the_epoch(train_here, run_script, monkeypatch):
    def fail(*arguments):
        raise UserError("an image cannot be read")

    monkeypatch.setattr("train.finish_epoch", fail)
    result, run = train_here()
    assert_user_error(result, "an image cannot be read")
    state = last_state(run.parent)
    assert state["step"] == state["batch"] == 5 and not state["rows"]
    resumed = run_script("train.py", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    state = last_state(run.parent)
    assert state["step"] == 5 and state["epoch"] == len(state["rows"]) == 1


def test_a_run_that_diverges_stops_and_writes_no_weights(train_here):
    """The loss and the gradient of the first step are finite, but the weights after it are not."""
    result, run = train_here("--no-scale-lr", "--init-lr", 1e38, "--checkpoint-every", 1e-9)
    assert_user_error(result, "arcface.conv1", "--init-lr", "step 1")
    assert not list(run.glob("*.p*t*"))


@pytest.mark.parametrize("step", [0, 2])
def test_a_device_out_of_memory_is_a_user_error_that_keeps_the_steps_before(train_here, monkeypatch, step):
    forward, steps = LabelLoss.forward, iter(range(100))

    def run_out_of_memory(self, *inputs):
        if next(steps) == step:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, *inputs)
    monkeypatch.setattr(LabelLoss, "forward", run_out_of_memory)
    assert_user_error(train_here()[0], "CUDA out of memory", "lower --batch-size")
    assert (last_state(Path("logs"))["step"] == step) if step else not list(Path("logs").glob("*/last.pt"))


def test_an_average_that_begins_with_a_resume_begins_at_the_saved_weights(tmp_path):
    state, args = make_state()
    train_step(state, [noise_batch()], args)
    save_checkpoint(state, Run(tmp_path, {}), args)
    resumed, _ = make_state("--ema", 0.99, "--seed", 12)
    resumed.load_state_dict(read_checkpoint(tmp_path / "last.pt"))
    name = "arcface.sep.weight"
    assert torch.equal(resumed.exported_weights(args)[name], state.net.state_dict()[name])


def test_the_averaged_weights_are_exported():
    state, args = make_state("--ema", 0.9)
    for _ in range(2):  # the first average is a copy
        train_step(state, [noise_batch()], args)
    name = "arcface.sep.weight"
    exported = state.exported_weights(args)[name]
    assert torch.equal(exported, state.ema.net.state_dict()[name])
    assert not torch.equal(exported, state.net.state_dict()[name])


def test_resume_takes_the_newest_run_or_the_one_that_it_names(tmp_path):
    for name, modified in (("a", 2), ("b", 3), ("c", 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "last.pt").touch()
        os.utime(tmp_path / name / "last.pt", (modified, modified))
    for given, name in (("", "b"), (tmp_path / "c", "c"), (tmp_path / "a" / "last.pt", "a")):
        assert find_checkpoint(given, tmp_path) == tmp_path / name / "last.pt"


def test_a_file_of_another_version_is_a_user_error(tmp_path):
    state, args = make_state()
    checkpoint = tmp_path / "last.pt"
    save_checkpoint(state, Run(tmp_path, {}), args)
    content = torch.load(checkpoint, weights_only=True)
    del content["loss_scale"]
    torch.save(content, checkpoint)
    with pytest.raises(UserError, match=r"not hold the state of a run of this version.*--model-path"):
        read_checkpoint(checkpoint)

