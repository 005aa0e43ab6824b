"""utils/training/engine.py and utils/training/compilation.py: one step at a time, in this process."""
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from train import check_settings, make_parser
from utils.common.errors import UserError
from utils.data.dataset import EpochBatches
from utils.faces.images import normalise
from utils.training import checkpoint as resume
from utils.training.compilation import compile_if_wanted
from utils.training.describe import describe
from utils.training.engine import Diverged, Interrupted, enter_training_mode, train_one_epoch, train_one_step
from utils.training.optim import LossScale
from utils.training.run import Run
from utils.training.setup import make_net, make_training
from utils.training.validation import validate

PICTURES = SimpleNamespace(name=lambda number: f"picture {number}")


def make(*arguments):
    """-> (training, settings) of train.py with these flags, for 8 pictures of 4 people in batches of 4."""
    parser = make_parser()
    settings = parser.parse_args(["--batch-size", "4", "--epochs", "2", "--warmup-epochs", "0", *map(str, arguments)])
    check_settings(settings, parser)
    device = torch.device("cpu")
    training = make_training(make_net(settings, 4, device), EpochBatches(8, 4, 1), settings, device)
    training.model.train()
    return training, settings


@pytest.fixture
def batch():
    pixels = torch.randint(0, 256, (4, 112, 112, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return pixels, torch.arange(4), torch.arange(4)


class loader_of(list):
    """Stands for a DataLoader of such batches, whose pictures all open."""
    dataset = PICTURES
    batch_sampler, num_workers = EpochBatches(8, 4, 1), 0


def flat(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_clipping_bounds_the_step(batch):
    lengths = []
    for clip in (0, 1e-3):
        training, _ = make("--grad-clip", clip, "--momentum", 0, "--weight-decay", 0, "--no-scale-lr")
        before = flat(training.net)
        train_one_step(training, [batch], PICTURES)
        lengths.append((flat(training.net) - before).norm().item())
    assert lengths[1] == pytest.approx(1e-3 * 1e-2, rel=1e-3) and lengths[0] > 100 * lengths[1]


def scaled(training, scale):
    training.scale = LossScale(True, scale)


def test_a_step_that_overflows_the_loss_scale_is_not_taken_and_not_counted(batch):
    training, _ = make("--ema", 0.9)
    scaled(training, 2.0 ** 126)
    before = flat(training.net)
    train_one_step(training, [batch], PICTURES)
    assert training.step == 0 and torch.equal(flat(training.net), before)
    assert training.average.n_averaged == 0 and training.scale.value == 2.0 ** 125
    scaled(training, 1024.0)
    train_one_step(training, [batch], PICTURES)
    assert training.step == 1 and training.average.n_averaged == 1


def test_a_loss_scale_at_its_floor_is_named_at_once(batch):
    training, _ = make()
    scaled(training, 1.0)
    for parameter in training.net.parameters():
        parameter.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    with pytest.raises(UserError, match="loss scale fell below 1 at step 0"):
        train_one_step(training, [batch], PICTURES)


def test_the_loss_scale_grows_after_many_good_steps_and_goes_on_from_a_grad_scalers_state():
    scale = LossScale(True, 1024.0)
    scale.load_state_dict({"scale": 512.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000,
                           "_growth_tracker": 1998})
    values = []
    for overflow in (False, False, False, True):
        scale.update(overflow)
        values.append(scale.value)
    assert values == [512, 1024, 1024, 512] and scale.state_dict() == {"scale": 512.0, "_growth_tracker": 0}
    off = LossScale(False)
    off.load_state_dict({})
    off.update(False)
    assert off.value == 1 and off.state_dict() == {}


@pytest.mark.parametrize("error, saved", [
    (torch.OutOfMemoryError("out of memory"), 1), (UserError("the network has collapsed"), 0)])
def test_an_error_of_a_step_comes_after_the_state_is_saved_unless_it_is_of_the_state(batch, tmp_path, error, saved):
    training, _ = make()
    steps = []

    def forward(*inputs):
        steps.append(training.step)
        if len(steps) == 2:
            raise error
        return training.objective(*inputs)

    training.model = type("Model", (), {"__call__": staticmethod(forward), "train": lambda self: None, "parameters":
                                        lambda self: training.objective.parameters()})()
    states = []
    with pytest.raises(type(error)) as caught:
        train_one_epoch(training, loader_of([batch, batch]), lambda means: None,
                        lambda: states.append((training.step, training.batch)))
    assert caught.value is error and states == [(1, 1)] * saved


def test_what_keeps_the_next_batch_from_coming_comes_after_the_state_is_saved(batch, tmp_path):
    def ends():
        yield batch
        raise fault

    class Loader(loader_of):
        __iter__ = staticmethod(ends)

    for fault, expected in ((UserError("100 pictures in turn do not open"), Interrupted), (OSError("gone"), OSError)):
        training, _ = make()
        states = []
        with pytest.raises(expected, match=str(fault)):
            train_one_epoch(training, Loader([batch, batch]), lambda means: None,
                            lambda training=training, states=states: states.append((training.step, training.batch)))
        assert states == [(1, 1)]


def test_equal_embeddings_are_a_collapse(batch):
    training, _ = make("--accumulate", 2)
    pixels, labels, numbers = batch
    equal = torch.zeros_like(pixels), labels, numbers
    with pytest.raises(UserError, match="step 0, the network has collapsed"):
        train_one_step(training, [batch, equal], PICTURES)


def test_the_validation_loss_has_the_whole_margin_from_the_first_epoch_on(batch, tmp_path):
    pixels, labels, _ = batch
    training, _ = make("--margin-warmup-epochs", 2)
    assert training.margin(0) == 0
    found = validate(training, loader_of([batch]))
    net = training.net.eval()
    net.head.m = 0.5
    expected = nn.functional.cross_entropy(net(normalise(pixels), labels), labels).item()
    assert found["loss"] == pytest.approx(expected, rel=1e-4)


def state_of(training):
    return {**training.net.state_dict(), "random": torch.get_rng_state()}


@pytest.mark.parametrize("broken", [False, True])
def test_compiling_leaves_no_trace_and_a_compiler_that_fails_leaves_eager_networks(monkeypatch, batch, broken):
    def compile_(module, **how):
        def call(*inputs):
            outputs = module.forward(*inputs)
            if broken:
                raise RuntimeError("no compiler")
            return outputs
        module._compiled_call_impl = call

    monkeypatch.setattr(nn.Module, "compile", compile_)
    pixels, labels, _ = batch
    training, settings = make("--compile", "--backbone", "mobilenet")  # which has dropout
    before = {name: value.clone() for name, value in state_of(training).items()}
    message = compile_if_wanted(training, settings, 0, normalise(pixels), labels)
    assert ("do not compile (RuntimeError)" in message) == broken
    assert (training.net.arcface._compiled_call_impl is None) == broken
    after = state_of(training)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(p.grad is None for p in training.net.parameters())
    train_one_step(training, [batch], PICTURES)


def test_in_the_last_epochs_batch_norm_keeps_its_statistics_and_still_learns(batch):
    training, _ = make("--freeze-bn-epochs", 1)
    for training.epoch, kept in ((0, False), (1, True)):
        enter_training_mode(training)
        layer = training.net.arcface.last_bn
        before = layer.running_mean.clone(), layer.running_var.clone(), layer.bias.detach().clone()
        train_one_step(training, [batch], PICTURES)
        same = [torch.equal(a, b) for a, b in zip(before, (layer.running_mean, layer.running_var, layer.bias))]
        assert same == [kept, kept, False]
    assert training.net.arcface.training


def test_without_being_asked_only_long_runs_compile():
    no = "torch.compile: no"
    for backbone, pictures, expected in (("mobilefacenet", 0, no), ("mobilefacenet", math.inf, "compiled"),
                                         ("mobilenet", math.inf, no)):
        training, settings = make("--backbone", backbone)
        training.objective.compiled_modules = list  # nothing to compile: the decision alone
        images = torch.zeros(4, 3, 112, 112)
        assert expected in compile_if_wanted(training, settings, pictures, images, torch.arange(4))


def test_a_network_starts_from_the_seed():
    first, second, other = (flat(make("--seed", seed)[0].net) for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)


@pytest.mark.parametrize("flags, words", [
    (["--init-lr", 5], "--init-lr 5 is not what is used: scaled with the batch it is 0.3125, beyond the published "
                       "limits of sgd, 0.0005 to 0.1"),
    (["--init-lr", 0.3, "--optimizer-type", "adamw"], "beyond the published limits of adamw, 0.0003 to 0.001"),
    (["--init-lr", 1], None), (["--init-lr", 5, "--no-scale-lr"], None)])
def test_a_learning_rate_beyond_the_limits_is_a_line_of_its_own(flags, words):
    training, settings = make(*flags)
    lines = [line for line in describe(training, EpochBatches(8, 4, 1), None, settings) if "not what is used" in line]
    assert len(lines) == (words is not None) and all(words in line for line in lines)


def save(training, folder):
    resume.save_checkpoint(training, Run(folder), {}, "hash")


@pytest.mark.parametrize("flags, spoil", [
    ([], lambda training: training.net.arcface.last_bn.running_var.fill_(torch.inf)),
    ([], lambda training: training.optimizer.state_dict()["state"][0]["momentum_buffer"].fill_(torch.nan)),
    (["--ema", 0.9], lambda training: training.average.module.head.weight.data.fill_(torch.nan))],
    ids=["BatchNorm", "momentum", "average"])
def test_a_state_that_is_not_finite_never_replaces_a_good_one(batch, tmp_path, flags, spoil):
    training, _ = make(*flags)
    train_one_step(training, [batch], PICTURES)
    save(training, tmp_path)
    good = (tmp_path / "last.pt").read_bytes()
    spoil(training)
    with pytest.raises(Diverged, match=r"not finite or huge, .*last\.pt is not written at step 1.*--init-lr"):
        save(training, tmp_path)
    assert (tmp_path / "last.pt").read_bytes() == good


def test_a_validation_loss_that_is_not_finite_is_a_user_error_and_no_figure(batch, tmp_path):
    training, _ = make()
    training.net.arcface.conv1.bn.weight.data.fill_(3e38)  # finite, and what comes out is not
    training.net.arcface.conv1.bn.running_var.fill_(1e-9)
    with pytest.raises(UserError, match=r"the validation loss is nan after epoch 0: lower --init-lr"):
        validate(training, loader_of([batch]))
