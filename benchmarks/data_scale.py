"""Time and memory that millions of images cost before the first step and in each worker process of the loader.

    python benchmarks/data_scale.py                           0.5, 5 and 17 million images, workers forked and spawned
    python benchmarks/data_scale.py --images 0.1

Each list repeats the path of an empty file, 50 times for each identity. The start is from the list to the order of the
first epoch. The memory of a worker is what it shares with no other process (/proc, so Linux only), after it has read
the paths of its part of the first million images.
"""
import multiprocessing
import resource
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from processes import in_new_processes

sys.path.insert(0, str(Path(__file__).parent.parent))
from utils.common.errors import SettingsParser, script
from utils.data.dataset import make_loaders, read_training_set

BATCH_SIZE, READ = 512, 1_000_000


def private_megabytes(worker):
    """Return the memory that a process shares with no other."""
    lines = Path(f"/proc/{worker.pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def read_path(paths, index):
    """Take the place of FaceDataset.load: read the path, not the image."""
    assert paths[index]
    return torch.zeros(1, 1, 3, dtype=torch.uint8)


def measure(list_path, method):
    """Return CPU seconds of the start, and megabytes of the main process and of the largest worker."""
    multiprocessing.set_start_method(method, force=True)
    settings = SimpleNamespace(annotation_path=list_path, datasets_path=None, unlabeled=None, input_shape=[112, 112],
                               num_workers=2, val_split=0.01, seed=11, batch_size=BATCH_SIZE, shard_head=False)
    start = time.process_time()
    paths, labels, _, _ = read_training_set(settings)
    loader, _ = make_loaders(paths, labels, settings, torch.device("cpu"))
    next(iter(loader.batch_sampler))
    seconds = time.process_time() - start
    loader.dataset.load = partial(read_path, paths)
    batches = iter(loader)
    for _ in range(min(len(loader) - 1, READ // BATCH_SIZE)):
        next(batches)
    worker = max(map(private_megabytes, multiprocessing.active_children()))
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, worker


@script
def main():
    parser = SettingsParser(__doc__)
    parser.add_argument("--images", type=float, nargs="+", default=[0.5, 5, 17], metavar="MILLIONS",
                        help="length of the lists")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "0000.jpg").touch()
        for millions in args.images:
            with open(f"{folder}/list.txt", "w", encoding="utf-8") as file:
                file.writelines(f"{number // 50};{folder}/0000.jpg\n" for number in range(int(millions * 1e6)))
            for method in ("fork", "spawn"):
                (seconds, main_process, worker), = in_new_processes(measure, (f"{folder}/list.txt", method))
                print(f"{millions:g} M images, {method}: start {seconds:.1f} CPU s, main process {main_process:.0f} "
                      f"MB, worker {worker:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
