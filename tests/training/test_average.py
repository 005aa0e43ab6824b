"""utils/training/optim.py: the moving average of a network's weights."""
import pytest
import torch
from torch import nn, optim

from utils.training.optim import MovingAverage


def test_the_average_forgets_the_start_and_then_moves_by_one_minus_the_decay():
    net = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    average = MovingAverage(net, decay=0.25)
    expected = None
    for updates in range(5):
        value = float(10 ** updates)
        with torch.no_grad():
            net[0].weight.fill_(value)
            net[1].running_mean.fill_(value)
            net[1].num_batches_tracked.fill_(updates)
        average.update_parameters(net)
        # The first update is a copy; the decay is (1 + n) / (10 + n) while that is smaller: 2/11, 3/12, then 0.25.
        kept = min((1 + updates) / (10 + updates), 0.25)
        expected = value if expected is None else kept * expected + (1 - kept) * value
        assert average.module[0].weight.item() == pytest.approx(expected, rel=1e-5)
        assert average.module[1].running_mean.item() == pytest.approx(expected, rel=1e-5)
        assert average.module[1].num_batches_tracked.item() == updates


def test_its_state_is_that_of_pytorchs_averaged_model():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    theirs = optim.swa_utils.AveragedModel(net, use_buffers=True)
    theirs.update_parameters(net)
    ours = MovingAverage(net, 0.9)
    ours.load_state_dict(theirs.state_dict())
    assert ours.n_averaged == 1 and ours.state_dict().keys() == theirs.state_dict().keys()
