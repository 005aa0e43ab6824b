"""Images that one core decodes in a second: from files, and from insightface's record files.

    python benchmarks/loader_speed.py --annotation-path cls_train.txt
    python benchmarks/loader_speed.py --annotation-path cls_train.txt --records faces_emore

Both are read in turn, from memory after a first round that does not count, as the loader of train.py does. How long a
training waited for its loader is the column data_wait of its log.csv.
"""
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from utils.common.errors import SettingsParser, script
from utils.data.annotation import read_annotation
from utils.data.records import read_records
from utils.faces.images import preprocess


def decoding_rate(images, indices):
    start = time.process_time()
    for index in indices:
        preprocess(images[index])
    return len(indices) / (time.process_time() - start)


@script
def main():
    parser = SettingsParser(__doc__)
    parser.add_argument("--annotation-path", default="cls_train.txt", help="the list of files")
    parser.add_argument("--records", metavar="DIR", help="the folder of a train.rec to compare with")
    parser.add_argument("--images", type=int, default=2000, help="to decode, drawn at random")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sources = {"files": read_annotation(args.annotation_path)[0]}
    if args.records:
        sources["records"] = read_records(args.records)[0]
    generator = torch.Generator().manual_seed(11)
    chosen = {name: torch.randperm(len(images), generator=generator)[:args.images].tolist()
              for name, images in sources.items()}
    rounds = [[decoding_rate(images, chosen[name]) for name, images in sources.items()]
              for _ in range(args.repeats + 1)][1:]
    for name, rates in zip(sources, zip(*rounds)):
        print(f"{name}: {statistics.median(rates):.0f} img/s")
    if args.records:
        ratios = sorted(records / files for files, records in rounds)
        print(f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
