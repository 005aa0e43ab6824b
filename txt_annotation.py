"""Turn a folder of faces into the list that train.py reads.

    datasets/                    python txt_annotation.py
        alice/  1.jpg  2.jpg     python txt_annotation.py --datasets-path /data/casia --output casia_train.txt
        bob/    1.jpg  2.png     python txt_annotation.py --datasets-path photos --align-to datasets

Writes `label;path` lines to cls_train.txt and `label;name` lines to cls_classes.txt beside it. With --align-to the
images are photos, and aligned crops of their faces are written and listed.
"""
import argparse
import os

import numpy as np
from tqdm import tqdm

from utils.common.errors import SettingsParser, UserError, script
from utils.data.align_folder import align_folder, report_path
from utils.data.annotation import classes_path, read_annotation, write_annotation
from utils.data.scan import describe_duplicates, list_root, scan_identities
from utils.faces.face_crop import NoDetector, are_aligned


def parse_args():
    parser = SettingsParser(__doc__)
    parser.add_argument("--datasets-path", default="datasets", help="a folder with one folder of images per person")
    parser.add_argument("--output", default="cls_train.txt", help="the annotation file to write")
    parser.add_argument("--align-to", metavar="DIR", help="the images are photos: write aligned crops of their faces "
                        "to DIR, in the same folders, and list those; run again, it updates them")
    parser.add_argument("--check", action=argparse.BooleanOptionalAction, default=True,
                        help="decode every image, and look for duplicates and for images that are not aligned")
    return parser.parse_args()


def print_skipped(skipped):
    for path, reason in skipped:
        tqdm.write(f"skipped {path}: {reason}")


def list_faces(root, output, check):
    """Scan the folder of faces, write the annotation and print what looks wrong."""
    identities, skipped = list_root(root)
    print_skipped(skipped)
    hashes = []

    def scan():
        for identity in tqdm(scan_identities(identities, check), "people", len(identities), unit="", disable=None):
            print_skipped(identity.skipped)
            skipped.extend(identity.skipped)
            if identity.images:
                hashes.append(np.array(identity.hashes, np.uint64))
                yield identity.name, identity.images
        if not hashes:
            raise UserError(f"{root} holds no person with an image: make one folder per person in it")

    write_annotation(scan(), output)
    paths, labels = read_annotation(output)
    counts = np.bincount(labels)
    print(f"{len(counts)} people, {len(paths)} images, {counts.min()} / {np.median(counts):g} / {counts.max()} images "
          f"per person (min / median / max), {len(skipped)} skipped")
    if check:
        print_hints(paths, labels.numpy(), np.concatenate(hashes))
    print(f"wrote {output} and {classes_path(output)}")


def print_hints(paths, labels, hashes):
    for line in describe_duplicates(hashes, labels, paths):
        print(line)
    try:
        if not are_aligned(paths):
            print("the faces are not where aligned crops have them: if these are photos, use --align-to")
    except NoDetector as error:
        print(f"the alignment is not checked: {error}")


@script
def main():
    args = parse_args()
    if args.align_to:
        counts = align_folder(args.datasets_path, args.align_to)
        print(f"{args.align_to}: {counts['written']} crops written, {counts['kept']} kept, {counts['removed']} removed"
              f", {counts['left out']} left out; {report_path(args.align_to)} lists these, and photos of several faces")
        if not counts["written"] + counts["kept"]:
            raise UserError(f"no crop was written or kept: see {report_path(args.align_to)}")
    list_faces(os.path.abspath(args.align_to or args.datasets_path), args.output, args.check)


if __name__ == "__main__":
    main()
