"""Turn a folder of faces into the list that train.py reads.

    datasets/                    python txt_annotation.py
        alice/  1.jpg  2.jpg     python txt_annotation.py --datasets-path /data/casia --output casia_train.txt
        bob/    1.jpg  2.png

    python txt_annotation.py --datasets-path photographs --align-to datasets    aligned crops of photographs first
    python txt_annotation.py --rec faces_emore    first writes insightface's train.rec out as such a folder

Writes `label;path` lines to cls_train.txt and `label;name` lines to cls_classes.txt beside it.
"""
import argparse
import os
from functools import partial
from statistics import median

from tqdm import tqdm

from utils.common.errors import SettingsParser, UserError, script
from utils.data.align_folder import NO_FACE, RULE, SEVERAL, SMALL, align_folder, report_path
from utils.data.annotation import classes_path, write_annotation
from utils.data.records import extract
from utils.data.scan import Tally, list_root, scan_people
from utils.data.scan_journal import journal_path, scan_on
from utils.faces.detector import FaceDetector


def parse_settings():
    parser = SettingsParser(__doc__)
    parser.add_argument("--datasets-path", default="datasets", help="a folder with one folder of pictures per person")
    parser.add_argument("--rec", metavar="FOLDER",
                        help="of insightface's train.rec and train.idx: write its pictures into --datasets-path first")
    parser.add_argument("--output", default="cls_train.txt", help="the annotation file to write")
    parser.add_argument("--align-to", metavar="DIR", help="the pictures are photographs: write aligned crops of their "
                        "faces to DIR, in the same folders, and list those; run again, it goes on")
    parser.add_argument("--check", action=argparse.BooleanOptionalAction, default=True,
                        help="decode every picture; --no-check lists a set that is known to be good in no time")
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


def tell(person, tally):
    tally.add(person)
    print_paths("skipped", person.skipped)
    print_paths("damaged, decodes in part:", person.damaged)


def print_paths(what, paths):
    for path, reason in paths:
        path = str(path).encode(errors="backslashreplace").decode()  # a name may be no valid Unicode
        tqdm.write(f"{what} {path}: {reason}")


def list_faces(root, settings):
    """Look through the folder of faces and write the annotation."""
    if os.path.isdir(settings.output):  # told now, not after hours
        raise UserError(f"cannot write {settings.output}: it is a folder")
    root = os.path.abspath(root)
    names, strays = list_root(root)
    print_paths("skipped", strays)
    tally, journal = Tally(root, strays), journal_path(settings.output)

    def scan(left):
        return scan_people(root, left, partial(tqdm, desc="people", unit="", disable=None), settings.check)

    def people():
        for person in scan_on(root, names, journal, settings.check, scan):
            tell(person, tally)
            yield person.name, person.pictures
        if not tally.per_person:
            journal.unlink()
            raise UserError("; ".join([f"{root} holds no person with a picture: make one folder per person in it",
                                       *tally.hints()]))

    write_annotation(people(), settings.output)
    journal.unlink()
    counts = tally.per_person
    print(f"{len(counts)} people, {sum(counts)} images, {min(counts)} / {median(counts):g} / {max(counts)} images per "
          f"person (min / median / max), {tally.skipped} skipped")
    print("\n".join([*tally.hints(), f"wrote {settings.output} and {classes_path(settings.output)}"]))


@script
def main():
    settings = parse_settings()
    if settings.rec:
        pictures, there, skipped = extract(settings.rec, settings.datasets_path, partial(
            tqdm, desc="extracting", unit="B", unit_scale=True, disable=None))
        print_paths("skipped", skipped)
        print(f"{pictures} pictures of {settings.rec} in {settings.datasets_path}, {there} of them from before")
    if settings.align_to:
        align(settings.datasets_path, settings.align_to)
    list_faces(settings.align_to or settings.datasets_path, settings)


if __name__ == "__main__":
    main()
