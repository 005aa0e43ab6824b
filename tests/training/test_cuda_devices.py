"""Training steps on CUDA tensors without values: what mixes up devices fails here, on a machine without a GPU.

PyTorch's own rules say on which device a result is, as far as a driver is not asked; test_waits.py has values too.
"""
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from training_data import make_state

from train import train_step
from utils.data.augmentation import KINDS
from utils.training.distillation import DistillationLoss
from utils.training.losses import LabelLoss

pytestmark = pytest.mark.skipif(torch.version.cuda is None or torch.cuda.is_available(),
                                reason="for a CUDA build of PyTorch on a machine without a GPU")


def convert_module(module, convert, recurse=True):
    """nn.Module._apply without swapping the parameters' content, which fake ones refuse."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(convert(value.detach()), value.requires_grad)
        part._buffers.update((name, convert(value)) for name, value in part._buffers.items() if value is not None)
    return module


@pytest.fixture
def fake_cuda(monkeypatch):
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda self, memo: self, raising=False)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *given: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(nn.Module, "_apply", convert_module)
    for kind in (torch.optim.SGD, torch.optim.AdamW):  # the fused kernels know values alone
        monkeypatch.setattr(kind, "step", lambda self, **given: None)
    for name, result in (("item", 1.0), ("__bool__", False)):
        monkeypatch.setattr(torch.Tensor, name, lambda self, result=result: result)
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: [1.0] * len(self))
    with FakeTensorMode():
        yield torch.device("cuda", 0)


@pytest.mark.parametrize("flags", [
    "--ema 0.9 --grad-clip 5 --bf16 --accumulate 2", "--optimizer-type adamw --fp16 --ema 0.9",
    f"--teacher {__file__} --label-weight 1 --bf16"])
def test_a_step_stays_on_the_device(fake_cuda, monkeypatch, flags):
    def loss(net):
        if "--teacher" not in flags:
            return LabelLoss(net)
        return DistillationLoss(net, torch.eye(128, device=fake_cuda), torch.zeros(8, 128).half(), 1.0)

    state, args = make_state(*flags.split(), "--augment", *KINDS, device=fake_cuda, loss=loss)

    def backward(loss):  # autograd's engine asks for a driver
        assert loss.device == fake_cuda and loss.requires_grad
        for parameter in state.wrapped_loss.parameters():
            parameter.grad = torch.zeros_like(parameter)
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    batch = torch.zeros(4, 112, 112, 3, dtype=torch.uint8), torch.arange(4), torch.arange(4)
    for _ in range(2):
        train_step(state, [batch] * args.accumulate, args)
    assert state.step == 2
