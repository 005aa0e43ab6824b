"""Hold one identity in ten out of training, and make a benchmark in LFW's format of its images.

    python benchmarks/held_out.py --datasets-path datasets
    python train.py --lfw-dir held_out --lfw-pairs held_out/pairs.txt

Writes cls_train.txt without the held-out identities (every tenth by name, from the fifth on), links to their images as
held_out/<identity>/<identity>_0001.jpg, and ten folds of 300 genuine and 300 impostor pairs drawn at random.
"""
import os
import random
import sys
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
from utils.common.errors import SettingsParser, UserError, script
from utils.common.files import write_text
from utils.data.annotation import write_annotation
from utils.data.scan import list_root, scan_identities

FOLDS, PAIRS = 10, 300


def draw_pairs(counts, generator):
    """Yield the lines of a list of pairs. counts: {name: images}."""
    names = sorted(counts)
    several = [name for name in names if counts[name] > 1]
    yield f"{FOLDS}\t{PAIRS}"
    for _ in range(FOLDS):
        for _ in range(PAIRS):
            name = generator.choice(several)
            first, second = generator.sample(range(1, counts[name] + 1), 2)
            yield f"{name}\t{first}\t{second}"
        for _ in range(PAIRS):
            one, other = generator.sample(names, 2)
            yield f"{one}\t{generator.randint(1, counts[one])}\t{other}\t{generator.randint(1, counts[other])}"


@script
def main():
    parser = SettingsParser(__doc__)
    parser.add_argument("--datasets-path", default="datasets", help="a folder with one folder of images per person")
    parser.add_argument("--output", default="cls_train.txt", help="the annotation file of the identities to train on")
    parser.add_argument("--held-out", default="held_out", help="the folder to make for the others")
    args = parser.parse_args()
    listed, _ = list_root(os.path.abspath(args.datasets_path))
    scanned = tqdm(scan_identities(listed), "people", len(listed), unit="", disable=None)
    images = {identity.name: identity.images for identity in scanned if identity.images}
    names = list(images)[4::10]
    held_out = {"_".join(name.split()): images.pop(name) for name in names}  # a list of pairs has no spaces in names
    if len(names) < 2 or max(map(len, held_out.values())) < 2:
        raise UserError(f"{args.datasets_path} has too few people to hold one in ten out: 15 at least, with two images "
                        "each")
    write_annotation(images.items(), args.output)
    for name, paths in held_out.items():
        for number, path in enumerate(paths, 1):
            link = Path(args.held_out, name, f"{name}_{number:04d}.jpg")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(Path(path).resolve())
    counts = {name: len(paths) for name, paths in held_out.items()}
    write_text(Path(args.held_out, "pairs.txt"), "\n".join(draw_pairs(counts, random.Random(11))) + "\n")
    print(f"{args.output}: {len(images)} people; {args.held_out}: {len(names)} people, {sum(counts.values())} images, "
          f"{2 * FOLDS * PAIRS} pairs")


if __name__ == "__main__":
    main()
