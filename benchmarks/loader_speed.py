"""Images per second and core from files and from a .rec file, and how long train.py waits for data.

    python benchmarks/loader_speed.py --annotation-path cls_train.txt --num-workers 2
    python benchmarks/loader_speed.py --annotation-path cls_train.txt --num-workers 2 --bf16
    python benchmarks/loader_speed.py --annotation-path cls_train.txt --records faces_emore

Every flag of train.py is one here. A run's own share of waiting is a column of its log.csv.
"""
import math
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from train import train_one_epoch
from utils.common.device import keep_freed_memory
from utils.common.errors import script
from utils.data.annotation import read_annotation
from utils.data.dataset import make_loaders
from utils.data.records import read_records
from utils.faces.images import preprocess
from utils.training.compilation import compile_if_it_pays
from utils.training.losses import LabelLoss
from utils.training.run import StopRequest
from utils.training.settings import check_args, make_parser
from utils.training.state import TrainState, make_net, new_sums

CPU = torch.device("cpu")


def parse_settings():
    parser = make_parser()
    parser.add_argument("--pictures", type=int, default=2000, help="to decode, and to train on")
    parser.add_argument("--records", metavar="DIR", help="compare decoding with that from this folder's train.rec")
    parser.add_argument("--repeats", type=int, default=5)
    settings = parser.parse_args()
    check_args(settings, parser)
    return settings


def decoding_rate(images, settings):
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(settings.seed))[:settings.pictures]
    start = time.process_time()
    for index in chosen.tolist():
        preprocess(images[index], settings.input_shape, settings.letterbox_image)
    return len(chosen) / (time.process_time() - start)


def compare(sources, settings):
    """Print how many images of each {name: sequence} a core decodes in a second, and the ratios, measured in turn."""
    rates = {name: [] for name in sources}
    for _ in range(settings.repeats + 1):  # the first round reads the files into memory
        for name, images in sources.items():
            rates[name].append(decoding_rate(images, settings))
    (first, slow), (second, fast) = ((name, found[1:]) for name, found in rates.items())
    ratios = sorted(b / a for a, b in zip(slow, fast))
    print(f"decoding on one core: {first} {statistics.median(slow):.0f} img/s, {second} {statistics.median(fast):.0f}; "
          f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


def measure_waiting(paths, labels, settings):
    """Train for two epochs, as train.py does, and print the share of the second that the loop waited for pictures."""
    keep_freed_memory(CPU)
    loader, _ = make_loaders(paths, labels, settings, CPU)
    net = make_net(settings, int(labels.max()) + 1, CPU)
    state = TrainState(settings, net, LabelLoss(net), loader.batch_sampler, CPU)
    print(compile_if_it_pays(state, settings, math.inf))
    batches = len(loader)
    for state.epoch in range(2):  # the first one starts the workers
        state.batch, state.sums = max(0, batches - settings.pictures // settings.batch_size), new_sums()
        train_one_epoch(state, loader, None, StopRequest(), settings, "")
    metrics = state.epoch_metrics()
    print(f"training {settings.backbone}, batch {settings.batch_size}, {settings.num_workers} workers: "
          f"{metrics['images_per_second']:.1f} img/s, {metrics['data_wait']:.2%} of the time waiting for data")


@script
def main():
    settings = parse_settings()
    settings.val_split = 0
    paths, labels = read_annotation(settings.annotation_path)
    if settings.records:
        compare({"files": paths, "records": read_records(settings.records)[0]}, settings)
    measure_waiting(paths, labels, settings)


if __name__ == "__main__":
    main()
