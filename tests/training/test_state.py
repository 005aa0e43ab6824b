"""utils/training/resume.py: a last.pt that is damaged, of another program or of another network."""
import re

import pytest
import torch

from train import check_settings, make_parser
from utils.common.errors import UserError
from utils.data.dataset import EpochBatches
from utils.training import checkpoint as resume
from utils.training.run import Run
from utils.training.setup import make_net, make_training


def make(classes, *flags):
    parser = make_parser()
    settings = parser.parse_args(["--batch-size", "4", *flags])
    check_settings(settings, parser)
    device = torch.device("cpu")
    return make_training(make_net(settings, classes, device), EpochBatches(8, 4, 1), settings, device)


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    training = make(4)
    resume.save_checkpoint(training, Run(folder), {"epochs": 1}, "hash")
    return resume.read_checkpoint(folder / "last.pt")


@pytest.mark.parametrize("change, words", [
    ({"model": [1]}, "model missing or of another kind"), ({"step": "3"}, "step missing"),
    ({"settings": None, "random": {}}, "random, settings missing"),
    ({"optimizer": {"state": {0: {"momentum_buffer": torch.tensor([torch.nan])}}, "param_groups": []}},
     "optimizer.state.0.momentum_buffer")], ids=["model", "step", "two", "NaN"])
def test_a_state_of_another_kind_is_a_user_error(state, tmp_path, change, words):
    torch.save(state | change, tmp_path / "last.pt")
    with pytest.raises(UserError, match=rf"last\.pt is not .*{re.escape(words)}.*--model-path") as caught:
        resume.read_checkpoint(tmp_path / "last.pt")
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_and_a_cut_are_user_errors(state, tmp_path):
    path = tmp_path / "last.pt"
    torch.save(state, path)
    whole = path.read_bytes()
    middle = len(whole) // 2
    for content in (whole[:middle] + bytes([whole[middle] ^ 16]) + whole[middle + 1:], whole[:middle], b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"last\.pt") as caught:
            resume.read_checkpoint(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [
    lambda state: {"model": {name: value for name, value in state["model"].items() if "last_bn" not in name}},
    lambda state: {"model": state["model"] | {"head.weight": torch.ones(7, 128)}},
    lambda state: {"optimizer": {"state": {}, "param_groups": []}}, lambda state: {"optimizer": {}},
    lambda state: {"maps": {"0.weight": torch.ones(1)}}],
    ids=["names", "shape", "groups", "nothing", "maps"])
def test_a_state_that_does_not_fit_is_a_user_error_of_one_line(state, tmp_path, change):
    with pytest.raises(UserError, match=r"last\.pt does not fit .*--model-path") as caught:
        resume.restore(make(4), Run(tmp_path), state | change(state), "hash", force=False)
    assert "\n" not in str(caught.value)
