"""Time and memory that millions of images cost before the first step and in each process of the loader.

    python benchmarks/data_scale.py                           0.5, 5 and 17 million images, workers forked and spawned
    python benchmarks/data_scale.py --images 5.2 --taken 1

Each measurement is a process of its own. Its list repeats the paths of a thousand empty files. "start" is the time
from the list to the order of the first epoch, without imports. The memory of a worker is what it shares with no other
process (/proc, so Linux only), at its start and after it has read the paths of its part of the epoch.
"""
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from processes import run_again

sys.path.insert(0, str(Path(__file__).parent.parent))
from utils.common.errors import SettingsParser, script
from utils.common.files import hash_file
from utils.data.annotation import check_files_exist, check_trainable, read_annotation
from utils.data.dataset import make_loaders

FILES, IMAGES_PER_IDENTITY, BATCH_SIZE = 1000, 50, 512


def private_megabytes(worker):
    """Return the memory that a process shares with no other."""
    lines = Path(f"/proc/{worker.pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def read_path(paths, index):
    """Take the place of FaceDataset.load: read the path, not the image."""
    assert paths[index]
    return torch.zeros(1, 1, 3, dtype=torch.uint8)


def measure(args):
    start, cpu = time.perf_counter(), time.process_time()
    paths, labels = read_annotation(args.list)
    check_trainable(labels, args.list)
    check_files_exist(paths, args.list)
    hash_file(args.list)
    multiprocessing.set_start_method(args.start)
    settings = SimpleNamespace(input_shape=[112, 112], letterbox_image=True, num_workers=2, val_split=0.01, seed=11,
                               batch_size=BATCH_SIZE)
    loader, _ = make_loaders(paths, labels, settings, torch.device("cpu"))
    loader.batch_sampler.indices_of(0)
    found = {"start_s": time.perf_counter() - start, "start_cpu_s": time.process_time() - cpu}
    loader.dataset.load = partial(read_path, paths)
    batches = iter(loader)
    next(batches)
    found["worker_MB"] = max(map(private_megabytes, multiprocessing.active_children()))
    for _ in range(min(len(loader) - 2, int(args.taken * 1e6) // BATCH_SIZE)):
        next(batches)
    found["worker_after_MB"] = max(map(private_megabytes, multiprocessing.active_children()))
    return found | {"main_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


@script
def main():
    parser = SettingsParser(__doc__)
    parser.add_argument("--images", type=float, nargs="+", default=[0.5, 5, 17], metavar="MILLIONS",
                        help="length of the lists")
    parser.add_argument("--taken", type=float, default=100, metavar="MILLIONS", help="images of the epoch, at most")
    parser.add_argument("--list", help="measure this list, and print JSON")
    parser.add_argument("--start", choices=("fork", "spawn"), help="how the workers of that measurement are started")
    args = parser.parse_args()
    if args.list:
        print(json.dumps(measure(args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for number in range(FILES):
            Path(folder, f"{number:04d}.jpg").touch()
        for millions in args.images:
            with open(f"{folder}/list.txt", "w", encoding="utf-8") as file:
                file.writelines(f"{number // IMAGES_PER_IDENTITY};{folder}/{number % FILES:04d}.jpg\n"
                                for number in range(int(millions * 1e6)))
            for start in ("fork", "spawn"):
                found = run_again("--list", f"{folder}/list.txt", "--start", start, "--taken", args.taken)
                print(f"{millions:g} M images, {start}:", *(f"{name} {value:.1f}" for name, value in found.items()),
                      flush=True)


if __name__ == "__main__":
    main()
