"""A training step waits for its device once, and a validation too. Counted on a simulated one."""
import pytest
import torch
from simulated_cuda import simulated_cuda, waits  # noqa: F401, a fixture
from test_engine import PICTURES, loader_of

from train import check_settings, make_parser
from utils.data.augmentation import KINDS
from utils.data.dataset import EpochBatches
from utils.training.engine import train_one_step
from utils.training.setup import make_net, make_training
from utils.training.validation import validate

pytestmark = pytest.mark.skipif(torch.version.cuda is None or torch.cuda.is_available(),
                                reason="for a CUDA build of PyTorch on a machine without a GPU")


@pytest.mark.parametrize("flags", [
    "--ema 0.9 --accumulate 2", "--sample-rate 0.5",
    f"--optimizer-type adamw --grad-clip 5 --fp16 --augment {' '.join(KINDS)}",
    "--teacher {} --teacher-backbone mobilefacenet --teacher-flip --hint-weight 1 --hint-epochs 1 --label-weight 1 "
    "--bf16"])
def test_a_step_waits_once(simulated_cuda, tmp_path, flags, published_weights):  # noqa: F811
    parser = make_parser()
    settings = parser.parse_args([*flags.format(published_weights).split(), "--batch-size", "2"])
    check_settings(settings, parser)
    training = make_training(make_net(settings, 4, simulated_cuda), EpochBatches(4, 2, 1), settings, simulated_cuda)
    training.model.train()
    batch = torch.randint(0, 256, (2, 112, 112, 3), dtype=torch.uint8), torch.arange(2), torch.arange(2)
    for step in range(2):
        waits.clear()
        train_one_step(training, [batch] * training.accumulate, PICTURES)
        assert training.step == step + 1 and len(waits) == 1, waits
    waits.clear()
    validate(training, loader_of([batch, batch]))
    assert len(waits) == 1, waits
