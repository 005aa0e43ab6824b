"""train.train_step and what belongs to a step: clipping, the loss scale, frozen BatchNorm, compiling."""
import math

import pytest
import torch
from torch import nn
from training_data import TINY, FakeLoader, make_state, noise_batch

from nets.arcface import BACKBONES
from nets.head import IGNORE
from train import train_one_epoch, train_step
from utils.common.errors import UserError
from utils.faces.images import normalise
from utils.training.checkpoint import save_checkpoint
from utils.training.optim import LossScale
from utils.training.run import Run, StopRequest
from utils.training.state import compile_if_it_pays
from utils.training.validation import validate


def flat(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_clipping_bounds_the_step():
    lengths = []
    for clip in (0, 1e-3):
        state, args = make_state("--grad-clip", clip, "--momentum", 0, "--weight-decay", 0, "--no-scale-lr")
        before = flat(state.net)
        train_step(state, [noise_batch()], args)
        lengths.append((flat(state.net) - before).norm().item())
    assert lengths[1] == pytest.approx(1e-3 * 1e-2, rel=1e-3) and lengths[0] > 100 * lengths[1]


def test_each_step_has_its_learning_rate_and_margin():
    state, args = make_state("--warmup-epochs", 1, "--margin-warmup-epochs", 1)
    found = []
    for _ in range(3):
        train_step(state, [noise_batch()], args)
        found.append((state.optimizer.param_groups[0]["lr"], state.net.head.m))
    assert found == [(state.learning_rate(step), state.margin(step)) for step in range(3)]
    assert found[0] < found[1] < found[2]


def test_accumulated_gradients_are_averaged():
    def change(*batches, number=0):
        state, args = make_state("--momentum", 0, "--weight-decay", 0, "--ema", 0)
        state.batch, before = number, flat(state.net)  # the random flips depend on the number of the batch
        train_step(state, batches, args)
        return flat(state.net) - before

    first, second = noise_batch(), noise_batch(seed=2)
    mean = (change(first) + change(second, number=1)) / 2
    assert (change(first, second) - mean).norm() < 1e-3 * mean.norm()


def test_bf16_changes_the_loss_of_a_step_by_rounding_alone():
    losses = []
    for flags in ([], ["--bf16"]):
        state, args = make_state(*flags)
        losses.append(train_step(state, [noise_batch()], args)[0])
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.02)


def test_a_step_that_overflows_the_loss_scale_is_not_taken_and_not_counted():
    state, args = make_state("--ema", 0.9)
    state.loss_scale = LossScale(True, 2.0 ** 126)
    before = flat(state.net)
    train_step(state, [noise_batch()], args)
    assert state.step == 0 and torch.equal(flat(state.net), before)
    assert state.ema.updates == 0 and state.loss_scale.value == 2.0 ** 125
    state.loss_scale = LossScale(True, 1024.0)
    train_step(state, [noise_batch()], args)
    assert state.step == 1 and state.ema.updates == 1


def test_a_loss_scale_at_its_minimum_is_a_user_error():
    state, args = make_state()
    state.loss_scale = LossScale(True, 1.0)
    for parameter in state.net.parameters():
        parameter.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    with pytest.raises(UserError, match=r"exceed fp16 at step 0 .*--bf16"):
        train_step(state, [noise_batch()], args)


@pytest.mark.parametrize("invalid", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_not_taken(invalid):
    state, args = make_state()
    before = flat(state.net)
    if invalid == "loss":
        state.net.arcface.last_bn.register_forward_hook(lambda layer, inputs, output: output * torch.nan)
    else:
        state.net.head.weight.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    with pytest.raises(UserError, match=r"the loss is .* at step 0 \(epoch 1, learning rate .*--init-lr"):
        train_step(state, [noise_batch()], args)
    assert state.step == 0 and torch.equal(flat(state.net), before)


def test_dropout_depends_on_seed_and_step_alone():
    def loss(seed, step):
        state, args = make_state("--backbone", "mobilenet", "--seed", seed, "--ema", 0)
        state.step = step
        torch.manual_seed(1)
        state.net.load_state_dict(start)
        return train_step(state, [noise_batch()], args)[0]

    start = make_state("--backbone", "mobilenet")[0].net.state_dict()
    losses = [loss(*choice) for choice in ((1, 0), (1, 0), (1, 1))]
    assert losses[0] == losses[1] != losses[2]


def test_a_signal_ends_the_epoch_after_its_step_and_the_next_call_trains_the_rest():
    state, args = make_state()
    stop = StopRequest()
    stop.received = 15
    loader = FakeLoader([noise_batch(), noise_batch(seed=2)])
    assert train_one_epoch(state, loader, None, stop, args) == 15
    assert (state.step, state.batch, state.sums["images"]) == (1, 1, 4)
    stop.received = 0
    assert train_one_epoch(state, FakeLoader(loader[1:]), None, stop, args) == 0
    assert (state.step, state.batch, state.sums["images"]) == (2, 2, 8)
    assert math.isfinite(state.epoch_metrics()["train_loss"])


def test_a_signal_is_noted_even_if_its_line_cannot_be_printed(monkeypatch):
    def broken_pipe(*arguments):
        raise BrokenPipeError
    stop = StopRequest()
    monkeypatch.setattr("os.write", broken_pipe)  # as after `train.py | tee log`, if Ctrl-C has ended tee
    monkeypatch.setattr("signal.signal", lambda *arguments: None)
    stop.note(2, None)
    assert stop.received == 2


def test_a_signal_to_another_rank_stops_this_one_and_one_to_this_rank_alone_does_not(monkeypatch):
    state, args = make_state()
    stop = StopRequest()

    def signal_during_the_exchange(values, largest):
        stop.received = 2
        return [15, 0]
    monkeypatch.setattr("train.distributed.reduce", signal_during_the_exchange)
    assert train_one_epoch(state, FakeLoader([noise_batch()]), None, stop, args) == 15
    assert stop.received == 2  # not lost


def test_the_accuracy_of_an_epoch_is_of_the_labeled_images_alone(monkeypatch):
    state, args = make_state()
    monkeypatch.setattr("train.train_step", lambda *given: (1.0, 2))  # the mean loss and the number correct
    train_one_epoch(state, FakeLoader([noise_batch(labels=[0, IGNORE, 2, IGNORE])]), None, StopRequest(), args)
    assert state.epoch_metrics()["train_accuracy"] == 1


def test_batch_norm_is_frozen_in_the_last_epochs_alone(monkeypatch):
    state, args = make_state("--epochs", 3, "--freeze-bn-epochs", 2)
    monkeypatch.setattr("train.train_step", lambda *given: (1.0, 2))
    training = []
    for state.epoch in range(3):
        train_one_epoch(state, FakeLoader([noise_batch()]), None, StopRequest(), args)
        training.append(state.net.arcface.last_bn.training)
    assert training == [True, False, False]


def test_in_the_last_epochs_batch_norm_is_in_eval_mode_and_still_learns():
    state, args = make_state()
    for freeze in (False, True):
        state.set_training_mode(freeze)
        layer = state.net.arcface.last_bn
        before = layer.running_mean.clone(), layer.running_var.clone(), layer.bias.detach().clone()
        train_step(state, [noise_batch()], args)
        same = [torch.equal(a, b) for a, b in zip(before, (layer.running_mean, layer.running_var, layer.bias))]
        assert same == [freeze, freeze, False]
    assert state.net.arcface.training


def test_the_validation_loss_has_the_whole_margin_from_the_first_epoch_on():
    images, labels, indices = noise_batch()
    state, _ = make_state("--margin-warmup-epochs", 2)
    assert state.margin(0) == 0
    found = validate(state, FakeLoader([(images, labels, indices)]))
    net = state.net.eval()
    net.head.m = 0.5
    expected = nn.functional.cross_entropy(net(normalise(images), labels), labels).item()
    assert found["val_loss"] == pytest.approx(expected, rel=1e-4)


def test_a_validation_loss_that_is_not_finite_is_a_user_error():
    state, _ = make_state()
    state.net.arcface.conv1.bn.weight.data.fill_(3e38)  # finite, but the output is not
    state.net.arcface.conv1.bn.running_var.fill_(1e-9)
    with pytest.raises(UserError, match=r"the validation loss is nan after epoch 0: lower --init-lr"):
        validate(state, FakeLoader([noise_batch()]))


@pytest.mark.parametrize(("backbone", "images", "compiler", "compiled"), [
    ("mobilefacenet", 0, "g++", False), ("mobilefacenet", 10 ** 6, "g++", True), ("mobilenet", 10 ** 6, "g++", False),
    ("mobilefacenet", 10 ** 6, None, False)])
def test_by_default_only_long_runs_with_a_compiler_compile(backbone, images, compiler, compiled, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: compiler)
    monkeypatch.setattr("sys.platform", "linux")
    state, args = make_state("--backbone", backbone)
    calls = []
    state.net.arcface.compile = lambda **options: calls.append(options)
    assert compile_if_it_pays(state, args, images).startswith(f"torch.compile: {'yes' if compiled else 'no'}")
    assert len(calls) == compiled == args.compile


def test_a_backbone_that_does_not_compile_runs_eagerly(monkeypatch):
    def refuse(*given, **named):
        raise RuntimeError("no compiler")
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", refuse)
    monkeypatch.setitem(BACKBONES, "tiny", TINY)
    losses = []
    for flag in ("--compile", "--no-compile"):
        state, args = make_state(flag, "--backbone", "tiny")
        compile_if_it_pays(state, args, 0)
        losses.append(train_step(state, [noise_batch()], args)[0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize(("flags", "line"), [
    ([], "learning rate: 0.1, at the end 0.001 (scaled with the batch, within 0.0005 to 0.1)"),
    (["--no-scale-lr"], "learning rate: 5, at the end 0.05 (as given)"),
    (["--no-scale-lr", "--milestones", "0.5"], "learning rate: 5, at the end 0.5 (as given)")])
def test_the_learning_rate_after_scaling_is_printed(flags, line):
    state, args = make_state("--batch-size", 4, "--init-lr", 5, *flags)
    assert line in state.describe(FakeLoader([]).batch_sampler, None, args)


def test_with_fewer_batches_than_accumulate_the_rate_is_that_of_the_images_of_a_step():
    state, _ = make_state("--batch-size", 4, "--accumulate", 100)  # an epoch has 2 batches
    assert state.learning_rate.peak == pytest.approx(1e-2 * 8 / 64)


def test_a_state_that_is_not_finite_never_replaces_a_good_one(tmp_path):
    state, args = make_state()
    train_step(state, [noise_batch()], args)
    run = Run(tmp_path, {})
    save_checkpoint(state, run, args)
    good = (tmp_path / "last.pt").read_bytes()
    state.optimizer.state_dict()["state"][0]["momentum_buffer"].fill_(torch.nan)
    with pytest.raises(UserError, match=r"not finite or huge, .*last\.pt is not written \(step 1\): lower --init-lr"):
        save_checkpoint(state, run, args)
    assert (tmp_path / "last.pt").read_bytes() == good
