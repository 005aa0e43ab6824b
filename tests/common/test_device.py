"""utils/common/device.py and distributed.py on simulated hardware."""
import pathlib

import pytest
import torch

from utils.common import device, distributed
from utils.common.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def card(monkeypatch):
    """The machine has one CUDA device without bfloat16 instructions."""
    for name, answer in {"is_available": True, "device_count": 1, "current_device": 0, "get_device_name": "Card",
                         "is_bf16_supported": False}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *given, answer=answer, **named: answer)


def test_a_cuda_device_has_its_index(card):
    assert [device.choose_device(name).index for name in ("auto", "cuda", "cuda:0")] == [0, 0, 0]
    with pytest.raises(UserError, match="there are 1 CUDA devices"):
        device.choose_device("cuda:1")


def test_auto_is_the_gpu_of_a_mac_if_there_is_no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device.choose_device("auto") == device.choose_device("mps") == torch.device("mps")
    assert "not tested" in device.describe_device(torch.device("mps"))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device.choose_device("auto") == CPU
    for name in ("mps", "cuda", "tpu", "meta"):
        with pytest.raises(UserError, match=f"--device {name}: .*cpu"):
            device.choose_device(name)


@pytest.mark.parametrize("flags, slow", [("fpu avx512f", True), ("fpu amx_bf16", False), ("asimd svebf16 bf16", False)])
def test_bfloat16_without_its_instructions_is_reported(card, monkeypatch, flags, slow):
    monkeypatch.setattr(pathlib.Path, "read_text", lambda path, **named: f"flags : {flags}\n")
    assert device.emulates_bf16(CPU) is slow
    assert ("--bf16 is slower" in device.describe_device(CPU, bf16=True)) is slow
    assert "bf16" not in device.describe_device(CPU)
    assert "cuda:0 (Card), which has no bfloat16" in device.describe_device(CUDA, bf16=True)


def test_more_ranks_than_gpus_are_a_user_error_before_they_wait_for_each_other(card, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(UserError, match="4 ranks for 1 CUDA device"):
        distributed.start(torch.device("cuda"))


def test_without_torchrun_there_is_one_rank(monkeypatch, capsys):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("RANK", "3")  # of another launcher
    assert distributed.start(CPU) == CPU and distributed.is_main() and distributed.world_size() == 1
    assert distributed.reduce([1, 2]) == [1.0, 2.0] and distributed.gather("x") == ["x"]
    assert capsys.readouterr() == ("", "")
