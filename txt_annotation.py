"""Turn a folder of faces into the list that train.py reads.

    datasets/                    python txt_annotation.py
        alice/  1.jpg  2.jpg     python txt_annotation.py --datasets-path /data/casia --output casia_train.txt
        bob/    1.jpg  2.png

    python txt_annotation.py --datasets-path photographs --align-to datasets    aligned crops of photographs first
    python txt_annotation.py --rec faces_emore    first writes insightface's train.rec out as such a folder

Writes `label;path` lines to cls_train.txt and `label;name` lines to cls_classes.txt beside it.
"""
from functools import partial
from statistics import median

from tqdm import tqdm

from utils.data.align_folder import NO_FACE, RULE, SEVERAL, SMALL, align_folder, report_path
from utils.data.annotation import classes_path, scan_folder, write_annotation
from utils.data.recordio import extract
from utils.faces.detector import FaceDetector
from utils.machine.errors import SettingsParser, UserError, script


def parse_settings():
    parser = SettingsParser(__doc__)
    parser.add_argument("--datasets-path", default="datasets", help="a folder with one folder of pictures per person")
    parser.add_argument("--rec", metavar="FOLDER",
                        help="of insightface's train.rec and train.idx: write its pictures into --datasets-path first")
    parser.add_argument("--output", default="cls_train.txt", help="the annotation file to write")
    parser.add_argument("--align-to", metavar="DIR", help="the pictures are photographs: write aligned crops of their "
                        "faces to DIR, in the same folders, and list those; run again, it goes on")
    return parser.parse_args()


def align(source, destination):
    written, before, remarks = align_folder(source, destination, FaceDetector(),
                                            partial(tqdm, desc="aligning", unit="img", disable=None))
    counts = ", ".join(f"{kind}: {sum(kind in remark for remark in remarks.values())}"
                       for kind in ("left out", NO_FACE, SEVERAL, SMALL))
    print(f"{written} crops written to {destination}, {before} were there; {counts}")
    print(f"{RULE}; every picture with a remark: {report_path(destination)}")
    if not written + before:
        raise UserError(f"{source} holds no photograph with a face in a person's folder")


def print_skipped(skipped):
    for path, reason in skipped:
        path = str(path).encode(errors="backslashreplace").decode()  # a name may be no valid Unicode
        print(f"skipped {path}: {reason}")


@script
def main():
    settings = parse_settings()
    if settings.rec:
        pictures, there, skipped = extract(settings.rec, settings.datasets_path, partial(
            tqdm, desc="extracting", unit="B", unit_scale=True, disable=None))
        print_skipped(skipped)
        print(f"{pictures} pictures of {settings.rec} in {settings.datasets_path}, {there} of them from before")
    if settings.align_to:
        align(settings.datasets_path, settings.align_to)
    root = settings.align_to or settings.datasets_path
    people, skipped = scan_folder(root, partial(tqdm, desc="decoding", unit="img", disable=None))
    print_skipped(skipped)
    if not people:
        raise UserError(f"{root} holds no person with a picture: make one folder per person in it")
    write_annotation(people, settings.output)
    counts = [len(images) for images in people.values()]
    print(f"{len(people)} people, {sum(counts)} images, {min(counts)} / {median(counts):g} / {max(counts)} images per "
          f"person (min / median / max), {len(skipped)} skipped")
    print(f"wrote {settings.output} and {classes_path(settings.output)}")


if __name__ == "__main__":
    main()
