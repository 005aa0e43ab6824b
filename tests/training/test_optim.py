"""utils/training/optim.py: learning rate and margin as functions of the step, decay, loss scale, moving average."""
from itertools import pairwise

import pytest
import torch
from torch import nn
from training_data import make_args

from nets.arcface import ArcfaceNet
from utils.training.optim import (
    LearningRate,
    LossScale,
    Margin,
    MovingAverage,
    make_optimizer,
    scale_learning_rate,
)


def rates(schedule):
    return [schedule(step) for step in range(schedule.total_steps)]


def test_the_published_schedule_of_100_epochs():
    schedule = LearningRate("cos", 0.01, 1e-4, total_steps=10000, steps_per_epoch=100)
    values = rates(schedule)
    assert values[0] == 1e-3
    assert values[150] == pytest.approx(1e-3 + 9e-3 / 4)  # quadratic: half-way through 3 epochs a quarter of the way
    assert values[299] < 0.01 == values[300]              # the peak is reached where the warm-up ends
    assert values[(300 + 8500) // 2] == pytest.approx((0.01 + 1e-4) / 2)
    assert values[8499] > 1e-4
    assert values[8500:] == [1e-4] * 1500                 # 15 epochs
    assert values[:301] == sorted(values[:301]) and values[300:] == sorted(values[300:], reverse=True)


@pytest.mark.parametrize(("epochs", "warmup", "flat"), [(20, 2, 6), (10, 1, 3), (5, 1, 1.5), (3, 1, 1), (2, 1, 1)])
def test_the_warm_up_and_the_flat_end_of_a_short_run_have_a_minimum_of_an_epoch(epochs, warmup, flat):
    values = rates(LearningRate("cos", 0.01, 1e-4, total_steps=100 * epochs, steps_per_epoch=100))
    end = round(100 * (epochs - flat))
    assert values[100 * warmup - 1] < 0.01 and (values[100 * warmup] == 0.01 or epochs == 2)
    assert values[end - 1] > 1e-4 and values[end:] == [1e-4] * round(100 * flat)


@pytest.mark.parametrize(("warmup_epochs", "reached"), [(0, 0), (0.5, 50)])
@pytest.mark.parametrize(("decay", "milestones"), [("cos", ()), ("step", ()), ("cos", (8,))])
def test_the_warm_up_lasts_as_long_as_given(decay, milestones, warmup_epochs, reached):
    values = rates(LearningRate(decay, 0.01, 1e-4, 1000, 100, warmup_epochs, milestones))
    assert values[0] == (0.01 if reached == 0 else 1e-3)
    assert all(a < b for a, b in pairwise(values[:reached]))
    without = rates(LearningRate(decay, 0.01, 1e-4, 1000, 100, 0, milestones))
    # A cosine begins where the warm-up ends. The warm-up does not move steps and milestones.
    assert values[reached] == (0.01 if decay == "cos" else without[reached])
    if decay == "step" or milestones:
        assert values[reached:] == without[reached:]


def test_step_decay_has_ten_levels_a_constant_factor_apart():
    values = rates(LearningRate("step", 0.1, 0.1 * 2 ** -9, total_steps=1000, steps_per_epoch=100))
    assert values == pytest.approx([0.1 * 2 ** -(step // 100) for step in range(1000)])


def test_each_milestone_divides_the_rate_by_ten():
    schedule = LearningRate("cos", 0.1, 1e-9, 1000, 100, milestones=(2, 6.5, 9))
    values = rates(schedule)
    assert values[:200] == [0.1] * 200  # no warm-up unless asked for
    assert values[200:650] == pytest.approx([0.01] * 450) and values[650:900] == pytest.approx([1e-3] * 250)
    assert values[900:] == pytest.approx([1e-4] * 100)


def test_the_margin_grows_linearly_and_then_stays():
    margin = Margin(0.5, 100)
    assert [margin(step) for step in (0, 50, 100, 101, 10**6)] == pytest.approx([0, 0.25, 0.5, 0.5, 0.5])
    assert [Margin(0.5)(step) for step in (0, 1, 1000)] == [0.5] * 3


@pytest.mark.parametrize(("batch_size", "optimizer_type", "init_lr", "peak"), [
    (64, "sgd", 1e-2, 1e-2),
    (128, "sgd", 1e-2, 2e-2),
    (4096, "sgd", 1e-2, 1e-1),  # the highest
    (2, "sgd", 1e-2, 5e-4),     # the lowest
    (64, "adam", 1e-2, 1e-3),
    (8, "adamw", 5e-4, 3e-4),
])
def test_the_rate_scales_with_the_batch_within_the_optimizers_limits(batch_size, optimizer_type, init_lr, peak):
    assert scale_learning_rate(init_lr, batch_size, optimizer_type) == pytest.approx(peak)


def make(net, *flags):
    return make_optimizer(net, make_args(*flags), 0.02)


@pytest.mark.parametrize(("name", "optimizer"), [
    ("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_the_optimizer_is_that_of_the_flag(name, optimizer):
    found = make(ArcfaceNet(3), "--optimizer-type", name)
    assert type(found) is optimizer and [group["lr"] for group in found.param_groups] == [0.02] * 3
    first = found.param_groups[0]
    assert (first["momentum"], first["nesterov"]) == (0.9, True) if name == "sgd" else first["betas"] == (0.9, 0.999)


@pytest.mark.parametrize(("backbone", "embedding_layer", "weight_decay", "head_decay"), [
    ("mobilefacenet", "features", ["0.5"], 0.5), ("mobilenet", "linear", ["0.5", "0"], 0),
    ("iresnet18", "fc", ["0.5", "0.1"], 0.1)])
def test_a_step_without_gradient_shrinks_only_weights_that_decay(
        backbone, embedding_layer, weight_decay, head_decay):
    net, of_head = ArcfaceNet(3, backbone), {"head.weight", f"arcface.{embedding_layer}.weight"}
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    optimizer = make(net, "--momentum", 0, "--weight-decay", *weight_decay)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in net.named_parameters():
        decay = 0 if parameter.ndim < 2 else head_decay if name in of_head else 0.5
        torch.testing.assert_close(parameter.detach(), before[name] * (1 - 0.02 * decay), msg=name)


def test_the_loss_scale_grows_after_many_finite_steps_and_resumes():
    scale = LossScale(True, 1024.0)
    scale.load_state_dict({"value": 512.0, "finite_steps": 1998})
    values = []
    for overflow in (False, False, False, True):
        scale.update(overflow)
        values.append(scale.value)
    assert values == [512, 1024, 1024, 512] and scale.state_dict() == {"value": 512.0, "finite_steps": 0}


def test_the_average_forgets_the_start_and_then_moves_by_one_minus_the_decay():
    net = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    average = MovingAverage(net, decay=0.25)
    expected = None
    for updates in range(5):
        value = float(10 ** updates)
        with torch.no_grad():
            net[0].weight.fill_(value)
            net[1].running_mean.fill_(value)
        average.update(net)
        # The first update is a copy; the decay is (1 + n) / (10 + n) while that is smaller: 2/11, 3/12, then 0.25.
        decay = min((1 + updates) / (10 + updates), 0.25)
        expected = value if expected is None else decay * expected + (1 - decay) * value
        assert average.net[0].weight.item() == pytest.approx(expected, rel=1e-5)
        assert average.net[1].running_mean.item() == pytest.approx(expected, rel=1e-5)
