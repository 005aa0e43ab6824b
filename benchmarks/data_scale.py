"""What millions of pictures cost before the first step and in each process: time to start, memory, pictures a second.

    python benchmarks/data_scale.py                                  0.5, 5 and 17 million, processes forked and spawned
    python benchmarks/data_scale.py --pictures 5.2 --start fork --num-workers 4

Each measurement is a process of its own on a list written for it, whose lines are 58 bytes and lead to a thousand small
pictures again and again. start: from the list to the order of the first epoch, as train.py does, without imports.
Memory of a worker is what it shares with no other process (/proc, so Linux only), at its start and after an epoch in
which it has taken every one of its paths, of pictures that are not decoded. img/s: 10,000 pictures that are.
"""
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from utils.common.errors import SettingsParser, UserError, script
from utils.common.files import hash_file
from utils.data.annotation import check_files_exist, check_trainable, read_annotation
from utils.data.dataset import make_loaders

REAL = 1000      # pictures on the disk
OF_PERSON = 50   # lines
DECODED = 10_000
CPU = torch.device("cpu")


def parse_settings():
    parser = SettingsParser(__doc__)
    parser.add_argument("--pictures", type=float, nargs="+", default=[0.5, 5, 17], metavar="MILLIONS",
                        help="how many the lists hold")
    parser.add_argument("--start", nargs="+", default=["fork", "spawn"], help="how processes are started")
    parser.add_argument("--num-workers", type=int, default=2, help="processes that decode pictures")
    parser.add_argument("--batch-size", type=int, default=512, help="pictures in a batch")
    parser.add_argument("--taken", type=float, default=100, metavar="MILLIONS",
                        help="so many pictures of an epoch at most")
    parser.add_argument("--list", help="measure this list, and print JSON")
    return parser.parse_args()


def write_pictures(folder):
    for number in range(REAL):
        pixels = np.random.default_rng(number).integers(0, 256, (14, 14, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((112, 112), Image.Resampling.BICUBIC).save(folder / f"{number:04d}.jpg")


def write_list(path, folder, count):
    with open(path, "w", encoding="utf-8") as file:
        for begin in range(0, count, 100_000):
            file.writelines(f"{number // OF_PERSON};{folder}/{number % REAL:04d}.jpg\n"
                            for number in range(begin, min(begin + 100_000, count)))


def private_megabytes(pid):
    """What a process shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


class Undecoded:
    """Instead of a dataset's load: its path, and not its picture."""

    def __init__(self, paths):
        self.paths = paths

    def __call__(self, index):
        assert self.paths[index]
        return torch.zeros(1, 1, 3, dtype=torch.uint8)


def measure(settings):
    """-> the figures of one list."""
    start, used = time.perf_counter(), time.process_time()
    paths, labels = read_annotation(settings.list)
    check_trainable(labels, settings.list)
    check_files_exist(paths, settings.list)
    hash_file(settings.list)
    options = SimpleNamespace(input_shape=[112, 112], letterbox_image=True, num_workers=settings.num_workers,
                              val_split=0.01, seed=11, batch_size=settings.batch_size)
    multiprocessing.set_start_method(settings.start[0])
    loader, _ = make_loaders(paths, labels, options, CPU)
    loader.batch_sampler.indices_of(0)
    figures = {"start": time.perf_counter() - start, "cpu": time.process_time() - used, "main": peak_megabytes()}

    loader.batch_sampler.start = max(0, len(loader) - DECODED // settings.batch_size)
    batches = iter(loader)
    next(batches)
    begin = time.perf_counter()
    decoded = sum(len(labels) for _, labels, _ in batches)
    figures["decoded"] = decoded / (time.perf_counter() - begin)
    del batches, loader

    loader, _ = make_loaders(paths, labels, options, CPU)
    loader.dataset.load = Undecoded(loader.dataset.images)
    batches = iter(loader)
    next(batches)
    workers = [child.pid for child in multiprocessing.active_children()]
    figures["worker_first"] = max(map(private_megabytes, workers))
    begin, taken, most = time.perf_counter(), 0, min(len(loader) - 1, settings.taken * 1e6 // settings.batch_size)
    for number, (_, labels, _) in enumerate(batches, 1):
        taken += len(labels)
        if number >= most:
            figures["worker_last"] = max(map(private_megabytes, workers))
            break
    return figures | {"taken": taken, "seconds": time.perf_counter() - begin, "main_last": peak_megabytes()}


def peak_megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@script
def main():
    settings = parse_settings()
    if not os.path.isdir("/proc/self"):
        raise UserError("the memory of a process is read from /proc: run this on Linux")
    if settings.list:
        print(json.dumps(measure(settings)))
        return
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder, "a folder of faces", "of people")
        pictures.mkdir(parents=True)
        write_pictures(pictures)
        for millions in settings.pictures:
            path = Path(folder, "list.txt")
            write_list(path, pictures, int(millions * 1e6))
            for start in settings.start:
                command = [__file__, "--list", path, "--start", start, "--num-workers", settings.num_workers,
                           "--batch-size", settings.batch_size, "--taken", settings.taken]
                result = subprocess.run([sys.executable, *map(str, command)], check=True, stdout=subprocess.PIPE,
                                        encoding="utf-8")
                found = json.loads(result.stdout.splitlines()[-1])
                print(f"{millions:g} M pictures, {path.stat().st_size / 1e6:.0f} MB, {start}: start "
                      f"{found['start']:.1f} s ({found['cpu']:.1f} of a core); main {found['main']:.0f} MB, "
                      f"{found['main_last']:.0f} after {found['taken'] / 1e6:.2f} M; a worker "
                      f"{found['worker_first']:.0f} MB, {found['worker_last']:.0f} after them; "
                      f"{found['decoded']:.0f} img/s decoded, {found['taken'] / found['seconds']:.0f} not", flush=True)


if __name__ == "__main__":
    main()
