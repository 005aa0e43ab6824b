"""Where the thresholds of a weight file do not hold: their errors on the pairs of a folder of aligned pictures.

    python benchmarks/limits.py --folder lfw                                      what to compare with
    python benchmarks/limits.py --folder people --first "rofm_*"                  masks, against all pictures
    python benchmarks/limits.py --folder people --first "rofm_*" --second "rofm_*"
    python benchmarks/limits.py --folder lfw --shrink 32                          as of faces of 32 pixels, against LFW
    python benchmarks/limits.py --folder children --groups                        the folders in it are no people

A pair is a picture whose file name fits --first and another that fits --second. Rejected: pairs of one person, at the
thresholds measured for the weights; accepted: pairs of two. With --groups every picture is taken to be of a person of
its own: false accepts alone are told, too many where somebody is there twice.
"""
import sys
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from arcface import Arcface
from utils.common.device import keep_freed_memory
from utils.common.errors import SettingsParser, UserError, script
from utils.evaluation.thresholds import Thresholds
from utils.faces.images import EXTENSIONS, open_image


def parse_settings():
    parser = SettingsParser(__doc__)
    parser.add_argument("--folder", required=True, help="a folder of aligned pictures for each person")
    parser.add_argument("--first", default="*", metavar="PATTERN", help="file names of the one side of a pair")
    parser.add_argument("--second", default="*", metavar="PATTERN", help="file names of the other side")
    parser.add_argument("--shrink", type=int, metavar="SIZE", help="make pictures of SIZE pixels of the first side")
    parser.add_argument("--groups", action="store_true", help="the folders are not people")
    parser.add_argument("--most", type=int, default=600, help="pictures of a side")
    parser.add_argument("--model-path", default="model_data/arcface_mobilefacenet.pth", help="weights (.pth)")
    return parser.parse_args()


def draw_pictures(folder, pattern, most, groups):
    """-> up to `most` pictures, up to ten of a person beside each other, so that there are pairs of one person."""
    people = {}
    for path in sorted(Path(folder).glob("*/*")):
        if path.suffix.lower() in EXTENSIONS and fnmatch(path.name, pattern):
            people.setdefault(str(path) if groups else path.parent.name, []).append(path)
    if not people:
        raise UserError(f"{folder} holds no picture {pattern} in a folder of it")
    names = np.random.default_rng(0).permutation(list(people))
    return [path for name in names for path in people[name][:10]][:most]


def shrink(path, size):
    """An aligned crop -> the same as it would be of a face of `size` pixels."""
    image = open_image(path)
    return image.resize((size, size), Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC)


def people_of(paths, groups):
    return np.array([str(path) if groups else path.parent.name for path in paths])


@script
def main():
    settings = parse_settings()
    arcface = Arcface(model_path=settings.model_path, align=False)
    keep_freed_memory(arcface.device)
    thresholds = Thresholds(settings.model_path).record.get("thresholds")
    if not thresholds:
        raise UserError(f"no thresholds were measured for {settings.model_path}: run eval_LFW.py --save-threshold")
    first = draw_pictures(settings.folder, settings.first, settings.most, settings.groups)
    second = draw_pictures(settings.folder, settings.second, settings.most, settings.groups)
    crop = partial(shrink, size=settings.shrink) if settings.shrink else open_image
    cosines = arcface.embed(first, crop=crop) @ arcface.embed(second, crop=open_image).T
    distances = np.sqrt(np.maximum(0, 2 - 2 * cosines))
    same_file = np.array(list(map(str, first)))[:, None] == list(map(str, second))
    same = people_of(first, settings.groups)[:, None] == people_of(second, settings.groups)
    genuine, impostors = distances[same & ~same_file], distances[~same]
    print(f"{settings.folder}: {len(first)} pictures against {len(second)}, {len(genuine)} pairs of one person, "
          f"{len(impostors)} of two")
    for name, threshold in thresholds.items():
        rejected = f"{np.mean(genuine >= threshold):7.2%} rejected" if len(genuine) else ""
        print(f"{name:>14} ({threshold:.3f})  {rejected:16}  {np.mean(impostors < threshold):7.3%} accepted")


if __name__ == "__main__":
    main()
