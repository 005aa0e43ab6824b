"""Error rates of the thresholds of a weight file on pairs from a folder of aligned images.

    python benchmarks/limits.py --folder lfw                                      the baseline
    python benchmarks/limits.py --folder people --first "rofm_*"                  masks against all images
    python benchmarks/limits.py --folder lfw --shrink 32                          faces of 32 pixels against LFW
    python benchmarks/limits.py --folder children --groups                        its folders are not single people

A pair is an image whose file name matches --first and another that matches --second. "Rejected" is the rate of genuine
pairs above the threshold, "accepted" that of impostor pairs below it. With --groups each image counts as an identity:
only "accepted" is measured, and it is too high if a person is there twice.
"""
import sys
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from arcface import Arcface
from utils.common.errors import SettingsParser, UserError, positive_int, script
from utils.faces.images import EXTENSIONS, open_image


def draw_images(args, pattern):
    """Return paths and identities: up to --most images, up to ten of each identity, so that there are genuine pairs."""
    images = {}
    for path in sorted(Path(args.folder).glob("*/*")):
        if path.suffix.lower() in EXTENSIONS and fnmatch(path.name, pattern):
            images.setdefault(str(path) if args.groups else path.parent.name, []).append(path)
    if not images:
        raise UserError(f"{args.folder} holds no image {pattern} in any of its folders")
    drawn = [(path, name) for name in np.random.default_rng(0).permutation(list(images)) for path in images[name][:10]]
    return zip(*drawn[:args.most])


def shrink(path, size):
    """Return an aligned crop with the detail of a face of `size` pixels."""
    image = open_image(path)
    return image.resize((size, size), Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC)


@script
def main():
    parser = SettingsParser(__doc__)
    parser.add_argument("--folder", required=True, help="a folder with a folder of aligned images for each person")
    parser.add_argument("--first", default="*", metavar="PATTERN", help="file names of the first images of pairs")
    parser.add_argument("--second", default="*", metavar="PATTERN", help="file names of the second images")
    parser.add_argument("--shrink", type=positive_int, metavar="SIZE", help="reduce the first images to SIZE pixels")
    parser.add_argument("--groups", action="store_true", help="count each image as an identity")
    parser.add_argument("--most", type=positive_int, default=600, help="first images, and second images, at most")
    parser.add_argument("--model-path", default="model_data/arcface_mobilefacenet.pth", help="weights (.pth)")
    args = parser.parse_args()
    arcface = Arcface(model_path=args.model_path)
    thresholds = arcface.thresholds.record.get("thresholds")
    if not thresholds:
        raise UserError(f"no thresholds were measured for {args.model_path}: run eval_LFW.py --save-threshold")
    (first, one), (second, other) = draw_images(args, args.first), draw_images(args, args.second)
    crop = partial(shrink, size=args.shrink) if args.shrink else None
    cosines = arcface.embed_anything(first, crop=crop) @ arcface.embed_anything(second).T
    distances = np.sqrt(np.maximum(0, 2 - 2 * cosines))
    same_file, same = (np.array(list(map(str, a)))[:, None] == list(map(str, b)) for a, b in
                       ((first, second), (one, other)))
    genuine, impostors = distances[same & ~same_file], distances[~same]
    print(f"{args.folder}: {len(first)} images against {len(second)}, {len(genuine)} genuine pairs, {len(impostors)} "
          "impostor pairs")
    for name, threshold in thresholds.items():
        rejected = f"{np.mean(genuine >= threshold):7.2%} rejected" if len(genuine) else ""
        print(f"{name:>14} ({threshold:.3f})  {rejected:16}  {np.mean(impostors < threshold):7.3%} accepted")


if __name__ == "__main__":
    main()
