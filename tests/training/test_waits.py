"""A training step and a validation wait for the device once. The waits are counted on a simulated device."""
import pytest
import torch
from simulated_cuda import simulated_cuda, waits  # noqa: F401, a fixture
from training_data import TINY, FakeLoader, make_state, noise_batch

from nets.arcface import BACKBONES
from train import train_step
from utils.data.augmentation import KINDS
from utils.training.losses import DistillationLoss, LabelLoss
from utils.training.validation import validate

pytestmark = pytest.mark.skipif(torch.version.cuda is None or torch.cuda.is_available(),
                                reason="for a CUDA build of PyTorch on a machine without a GPU")


@pytest.mark.parametrize("flags", [
    "--backbone tiny --ema 0.9 --accumulate 2", "--backbone mobilefacenet --sample-rate 0.5",
    f"--backbone tiny --optimizer-type adamw --grad-clip 5 --fp16 --augment {' '.join(KINDS)}",
    f"--backbone tiny --teacher {__file__} --label-weight 1 --bf16 --augment mixup"])
def test_a_step_waits_once(simulated_cuda, monkeypatch, flags):  # noqa: F811
    monkeypatch.setitem(BACKBONES, "tiny", TINY)

    def loss(net):
        if "--teacher" not in flags:
            return LabelLoss(net)
        projection = torch.eye(128).pin_memory().to(simulated_cuda, non_blocking=True)
        return DistillationLoss(net, projection, torch.randn(4, 128).half(), 1.0)

    state, args = make_state("--batch-size", 2, *flags.split(), count=4, device=simulated_cuda, loss=loss)
    batch = noise_batch(2)
    for step in range(2):
        waits.clear()
        train_step(state, [batch] * args.accumulate, args)
        assert state.step == step + 1 and len(waits) == 1, waits
    waits.clear()
    validate(state, FakeLoader([batch, batch]))
    assert len(waits) == 1, waits
