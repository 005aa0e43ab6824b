"""Decoded pictures per second and core, by Pillow and torchvision, and through train.py's loader.

    python benchmarks/loader_speed.py --annotation-path cls_train.txt --num-workers 2

The share of its time that train.py waits for data is a column of its log.csv.
"""
import statistics
import sys
import time
from pathlib import Path

import torch
import torchvision.io

sys.path.insert(0, str(Path(__file__).parent.parent))
from train import check_settings, make_parser
from utils.annotation import read_annotation
from utils.dataset import make_loaders
from utils.images import preprocess


def rate(function, items):
    start = time.perf_counter()
    for item in items:
        function(item)
    return len(items) / (time.perf_counter() - start)


def decode_with_torchvision(path):
    return torchvision.io.decode_jpeg(torchvision.io.read_file(path), mode=torchvision.io.ImageReadMode.RGB)


def main():
    parser = make_parser()
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    settings = parser.parse_args()
    check_settings(settings, parser)
    torch.set_num_threads(1)
    paths, labels = read_annotation(settings.annotation_path)
    sample = paths[:: max(1, len(paths) // settings.pictures)]
    for path in sample:
        preprocess(path)  # into the page cache

    pillow, torchvision_ = [], []
    for _ in range(settings.repeats):
        pillow.append(rate(preprocess, sample))
        torchvision_.append(rate(decode_with_torchvision, sample))
    ratios = sorted(b / a for a, b in zip(pillow, torchvision_))
    print(f"one core: preprocess() with Pillow {statistics.median(pillow):.0f} img/s, torchvision's decoder alone "
          f"{statistics.median(torchvision_):.0f}; ratio {statistics.median(ratios):.2f} "
          f"({ratios[0]:.2f} to {ratios[-1]:.2f})")

    loader, _ = make_loaders(paths, labels, settings, torch.device("cpu"))
    for epoch in range(2):  # the first one starts the workers
        loader.batch_sampler.epoch = epoch
        start, count = time.perf_counter(), 0
        for _, batch_labels, _ in loader:
            count += len(batch_labels)
            if count >= 10 * settings.pictures:
                break
        print(f"loader, {settings.num_workers} workers, epoch {epoch + 1}: "
              f"{count / (time.perf_counter() - start):.0f} img/s")


if __name__ == "__main__":
    main()
