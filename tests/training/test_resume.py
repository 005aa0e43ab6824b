"""Runs that are killed, stopped or diverge, and go on."""
import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, assert_user_error
from training_data import QUICK, assert_same_weights, only_run, train_command, weights, write_faces

import train
from utils.common.errors import UserError
from utils.training import checkpoint as resume
from utils.training.interrupt import StopRequest
from utils.training.losses import LabelLoss

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
    ["--num-workers", 2, "--ema", 0.9, "--accumulate", 2],
    ["--num-workers", 0, "--teacher", "published", "--hint-epochs", 1, "--augment", "affine", "color", "mixup"],
], ids=["workers 0", "workers 2, EMA, accumulation", "teacher"])
def test_a_killed_run_resumed_ends_with_the_same_weights(run_script, annotation, published_weights, tmp_path, extra):
    extra = [published_weights if value == "published" else value for value in extra]
    arguments = [*QUICK, "--annotation-path", annotation, "--epochs", EPOCHS, "--val-split", 0.1,
                 "--checkpoint-every", 0.0001, *extra]
    whole = run_script("train.py", *arguments, "--save-dir", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    status, _, _ = start_and_signal(arguments, tmp_path, signal.SIGKILL, after=3)
    assert status == -signal.SIGKILL
    run = only_run(tmp_path / "logs")
    state = torch.load(run / "last.pt", weights_only=True)
    assert state["step"] < torch.load(only_run(tmp_path / "whole") / "last.pt", weights_only=True)["step"]
    resumed = run_script("train.py", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert f"going on after step {state['step']}" in resumed.stdout
    assert_same_weights(only_run(tmp_path / "whole"), run)


def test_dropout_goes_on_with_the_same_random_numbers(run_script, annotation, tmp_path):
    arguments = [*QUICK, "--annotation-path", annotation, "--backbone", "mobilenet", "--batch-size", 4, "--epochs", 1,
                 "--num-workers", 0, "--val-split", 0.7, "--checkpoint-every", 0.00001]
    whole = run_script("train.py", *arguments, "--save-dir", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    start_and_signal(arguments, tmp_path, signal.SIGKILL, after=1)
    resumed = run_script("train.py", "--resume", only_run(tmp_path / "logs"))
    assert resumed.returncode == 0, resumed.stderr
    assert_same_weights(only_run(tmp_path / "whole"), only_run(tmp_path / "logs"))


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


def test_the_checkpoint_holds_the_whole_state_as_plain_types(finished):
    state = torch.load(only_run(finished / "logs") / "last.pt", weights_only=True)
    assert {"model", "optimizer", "scaler", "average", "step", "epoch", "batch", "sums", "random", "rows", "settings",
            "data", "maps", "shards", "people"} == state.keys()
    assert {"python", "numpy", "torch", "cuda"} == state["random"][0].keys()
    assert state["epoch"] == 1 and state["batch"] == 0 and len(state["rows"]) == 1


def test_a_resume_with_other_settings_is_refused_and_can_be_forced(run_script, finished):
    refused = run_script("train.py", "--resume", "--m", 0.4, "--init-lr", 0.1, "--epochs", 2, cwd=finished)
    assert_user_error(refused, "m was 0.5, is 0.4", "init_lr was 0.05, is 0.1", "--force")


def test_what_the_saved_state_does_not_fit_is_refused_even_by_force(run_script, finished):
    refused = run_script("train.py", "--resume", "--batch-size", 4, "--epochs", 2, "--force", cwd=finished)
    assert_user_error(refused, "batch_size was 8, is 4", "--model-path")


def test_a_resume_with_other_pictures_is_refused(run_script, finished, shared, tmp_path):
    other = write_faces(shared, tmp_path / "other.txt", skip=5)
    refused = run_script("train.py", "--resume", "--annotation-path", other, cwd=finished)
    assert_user_error(refused, "training pictures", "--force")


def test_a_resume_with_another_teacher_in_the_old_ones_file_is_refused(tmp_path):
    def settings_with(content):
        parser = train.make_parser()
        (tmp_path / "teacher.pth").write_bytes(content)
        settings = parser.parse_args(["--teacher", str(tmp_path / "teacher.pth")])
        train.check_settings(settings, parser)
        return vars(settings)

    saved = settings_with(b"one")
    resume.check_settings(saved, settings_with(b"one"), force=False)
    with pytest.raises(UserError, match="teacher_sha256"):
        resume.check_settings(saved, settings_with(b"another"), force=False)


def test_what_ends_an_evaluation_does_not_cost_the_epoch(run_script, annotation, tmp_path):
    code = ("import train\nfrom utils.common.errors import UserError\n"
            "def finish_epoch(*_): raise UserError('a picture does not open')\n"
            "train.finish_epoch = finish_epoch\ntrain.main()")
    arguments = [*QUICK, "--annotation-path", annotation, "--epochs", 1, "--num-workers", 0]
    ended = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=tmp_path, capture_output=True,
                           encoding="utf-8", env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=100)
    assert_user_error(ended, "a picture does not open")
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
    assert "epochs was 1, is 2" in forced.stdout and "weight_decay was 0.0005, is 0.25" in forced.stdout
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


def test_a_run_that_explodes_stops_and_no_file_is_of_what_became_of_it(train_here):
    """The loss of the first step is finite, and so is its gradient; what the step makes of the weights is not."""
    result, run = train_here("--no-scale-lr", "--init-lr", 1e38, "--checkpoint-every", 1e-9)
    assert_user_error(result, "arcface.conv1", "--init-lr", "at step 1", "diverged.json", "no state was saved yet")
    assert not list(run.glob("*.p*t*"))


@pytest.mark.parametrize("step, flags, left", [
    (0, [], "no state was saved yet"), (6, [], "last.pt holds the last good state"),
    (2, ["--checkpoint-every", 1e-9], "last.pt holds the state that it diverges from")])
def test_a_step_without_a_loss_is_told_with_its_pictures(train_here, monkeypatch, step, flags, left):
    forward, steps = LabelLoss.forward, iter(range(100))

    def without_a_loss(self, *inputs):
        outcome = forward(self, *inputs)
        return outcome._replace(loss=outcome.loss * (math.nan if next(steps) == step else 1))
    monkeypatch.setattr(LabelLoss, "forward", without_a_loss)
    result, run = train_here(*flags)
    assert_user_error(result, "the loss is nan and the gradient norm", f"step {step}", "diverged.json", left)
    facts = json.loads((run / "diverged.json").read_text(encoding="utf-8"))
    assert len(facts["pictures"]) == 8 and all(os.path.isfile(path) for path in facts["pictures"])


def test_the_averaged_weights_are_what_is_saved(run_script, annotation, tmp_path):
    result = run_script("train.py", *QUICK, "--annotation-path", annotation, "--epochs", 1, "--num-workers", 0,
                        "--ema", 0.99)
    assert result.returncode == 0, result.stderr
    run = only_run(tmp_path / "logs")
    state = torch.load(run / "last.pt", weights_only=True)
    saved = weights(run)
    name = "arcface.sep.weight"
    assert torch.equal(saved[name], state["average"]["module." + name])
    assert not torch.equal(saved[name], state["model"][name])


def test_a_signal_to_the_whole_process_group_still_saves(annotation, tmp_path):
    arguments = [*QUICK, "--annotation-path", annotation, "--epochs", 50, "--num-workers", 2,
                 "--checkpoint-every", 0.0001]
    code, stdout, stderr = start_and_signal(arguments, tmp_path, signal.SIGTERM, after=2, group=True)
    assert code == 143, stderr
    assert "go on with" in stdout and "Traceback" not in stderr
