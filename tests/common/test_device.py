"""utils/common/device.py and distributed.start on machines that are not here."""
import pytest
import torch

from utils.common import device, distributed
from utils.common.errors import UserError

CUDA = torch.device("cuda", 0)


@pytest.fixture
def card(monkeypatch):
    """card(capability) -> the machine has one CUDA card of that compute capability; PyTorch is made for 7.5 and 9.0."""
    def install(capability):
        for name, answer in {"is_available": True, "device_count": 1, "current_device": 0, "get_device_name": "Card",
                             "get_device_capability": capability, "get_arch_list": ["sm_75", "sm_90a", "compute_90"],
                             "is_bf16_supported": capability >= (8, 0)}.items():
            monkeypatch.setattr(torch.cuda, name, lambda *given, answer=answer, **named: answer)
    return install


def test_a_card_older_than_this_pytorch_is_refused_and_a_newer_one_is_not(card):
    card((6, 1))
    with pytest.raises(UserError, match=r"\(Card\) is of compute capability 6\.1, .* made for 7\.5 and later"):
        device.choose_device("auto")
    card((12, 0))
    assert device.choose_device("auto") == CUDA and not device.emulates_bf16(CUDA)
    card((7, 5))
    assert device.choose_device("cuda") == CUDA and device.emulates_bf16(CUDA)


def test_a_cuda_device_has_a_number_which_torch_asks_for(card, monkeypatch):
    card((9, 0))
    taken = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda one: taken.append(torch.cuda._utils._get_device_index(one)))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    precision = torch.get_float32_matmul_precision()
    for name in ("auto", "cuda", "cuda:0"):
        device.tune_cuda(device.choose_device(name))
    torch.set_float32_matmul_precision(precision)
    assert taken == [0, 0, 0]


def test_auto_is_the_gpu_of_a_mac_where_there_is_no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device.choose_device("auto") == device.choose_device("mps") == torch.device("mps")
    assert "nobody has tested" in device.describe_device(torch.device("mps"))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device.choose_device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match="no GPU of a Mac"):
        device.choose_device("mps")


@pytest.mark.parametrize("name, words", [("cuda", "4 processes for 1 CUDA device"), ("mps", "need cuda or cpu")])
def test_more_processes_than_gpus_are_refused_before_they_wait_for_each_other(card, monkeypatch, name, words):
    card((9, 0))
    for variable in distributed.VARIABLES:
        monkeypatch.setenv(variable, "4" if variable.endswith("WORLD_SIZE") else "3")
    with pytest.raises(UserError, match=words):
        distributed.start(torch.device(name))
