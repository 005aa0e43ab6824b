"""The annotation file, `label;path` a line, and the folder tree it is made from."""
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from utils.data.bad_pictures import most_allowed
from utils.data.recordio import NOTE
from utils.faces.images import EXTENSIONS, open_image
from utils.machine.errors import UserError
from utils.machine.files import read_lines, write_text

LOOKED_AT = 100  # pictures at the start of a training: each is a round trip on a network's disk


class Scan(NamedTuple):
    people: dict   # name -> sorted paths of that person's pictures; a person's label is their place in it
    skipped: list  # (path, reason) of everything that was left out


class Listing(NamedTuple):
    candidates: list  # paths that are pictures by their name
    folders: list     # of the people
    skipped: list     # (path, reason) of everything else


def list_folder(root):
    """A folder of one folder per person -> Listing, sorted by name. Raises UserError where root is no folder."""
    root = Path(os.path.abspath(root))
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: make one folder per person in it, or give --datasets-path")
    candidates, folders, skipped = [], [], []
    for folder in sorted(root.iterdir(), key=lambda path: path.name):
        if folder.name == NOTE:
            continue
        if not folder.is_dir():
            skipped.append((folder, "a file beside the person folders"))
        elif folder.name.startswith(".") or unwritable(folder):
            skipped.append((folder, unwritable(folder) or "a hidden folder"))
        else:
            folders.append(folder)
            for path in sorted(folder.iterdir(), key=lambda path: path.name):
                reason = not_a_candidate(path)
                candidates.append(path) if reason is None else skipped.append((path, reason))
    return Listing(candidates, folders, skipped)


def scan_folder(root, progress):
    """A folder of one folder per person -> Scan. Every picture is decoded, so that training never meets a bad one.

    progress: a function that wraps an iterable, such as tqdm; called as progress(iterable, total=count).
    Raises UserError where root is no folder.
    """
    candidates, folders, skipped = list_folder(root)
    people = {}
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter lock
        # In slices: a pool remembers 1.7 kB for each picture it was given, 10 GB for MS1M's 5.8 million.
        slices = (candidates[start:start + 4096] for start in range(0, len(candidates), 4096))
        reasons = (reason for part in slices for reason in pool.map(why_undecodable, part))
        for path, reason in zip(candidates, progress(reasons, total=len(candidates))):
            if reason is None:
                people.setdefault(path.parent.name, []).append(str(path))
            else:
                skipped.append((path, reason))
    skipped += [(folder, "a person with no picture") for folder in folders if folder.name not in people]
    return Scan(people, skipped)


def not_a_candidate(path):
    """Why a path inside a person's folder is no picture, judged by its name; None where it may be one."""
    if path.is_dir():
        return "a folder inside a person's folder"
    if path.name.startswith(".") or path.suffix.lower() not in EXTENSIONS:
        return "not a picture by its extension"
    return unwritable(path)


def unwritable(path):
    """Why a path cannot stand in a line of UTF-8 text, or None."""
    if "\n" in str(path) or "\r" in str(path):
        return "a line break in the name"
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return "a name that is not valid Unicode"


def why_undecodable(path):
    try:
        open_image(path)
    except UserError as error:
        return reason_of(error, path)


def reason_of(error, path):
    """open_image's UserError -> what is wrong, without the path and the remedy."""
    return str(error).removeprefix(f"{path} ").rpartition(":")[0]


def classes_path(annotation_path):
    """cls_train.txt -> cls_classes.txt, in the same folder."""
    path = Path(annotation_path)
    return path.with_name(path.stem.removesuffix("_train") + "_classes.txt")


def write_annotation(people, path):
    """Write `label;path` lines to `path`, and `label;name` lines to classes_path(path)."""
    rows = [f"{label};{image}\n" for label, images in enumerate(people.values()) for image in images]
    write_text(path, "".join(rows))
    write_text(classes_path(path), "".join(f"{label};{name}\n" for label, name in enumerate(people)))


def read_annotation(path, root=None):
    """An annotation file -> (paths, labels), two lists of equal length; labels are 0..C-1 without gaps.

    root: where the folders of the people are now, if they have moved.
    Raises UserError, which names the line, for a line that is not `label;path`, and for labels with gaps.
    """
    paths, labels = [], []
    for number, line in enumerate(read_lines(path, "run txt_annotation.py first, or give --annotation-path"), 1):
        if not line.strip():
            continue
        label, semicolon, image = line.partition(";")  # only the first: a path may hold more
        if not semicolon or not label.strip().isdecimal() or not image.strip():
            raise UserError(f"{path}, line {number}: {line[:80]!r} is not `label;path`: run txt_annotation.py again")
        paths.append(moved(image, root) if root else image)
        labels.append(int(label))
    if not labels:
        raise UserError(f"{path} holds no picture: run txt_annotation.py on a folder with one folder per person")
    for expected, label in enumerate(sorted(set(labels))):
        if label != expected:
            raise UserError(f"{path}: labels run to {max(labels)} but {expected} is not among them: "
                            "run txt_annotation.py again")
    return paths, labels


def moved(path, root):
    """Where a picture is when its person's folder lies in another root. The path may be one of Windows."""
    kind = PurePosixPath if "/" in path else PureWindowsPath
    return os.path.join(root, *kind(path).parts[-2:])


def check_there(paths, path, largest_share):
    """Look for a hundred pictures, spread over the list that the file at `path` holds.

    Raises UserError, which names the line, where more of them are missing than most_allowed.
    """
    looked_at = range(0, len(paths), max(1, len(paths) // LOOKED_AT))
    missing = [number for number in looked_at if not os.path.exists(paths[number])]
    if len(missing) > most_allowed(len(looked_at), largest_share):
        raise UserError(f"{path}, line {line_of(missing[0], path)}: {paths[missing[0]]} does not exist, nor do "
                        f"{len(missing) - 1} of {len(looked_at) - 1} others looked for: give --datasets-path if they "
                        "have moved, or run txt_annotation.py again")


def line_of(picture, path):
    """The line of an annotation file that lists its picture of this number, from 0 on."""
    lines = (number for number, line in enumerate(read_lines(path, ""), 1) if line.strip())
    return next(islice(lines, picture, None))


def check_trainable(labels, path):
    """Raises UserError below the floor: two people, each with two pictures."""
    pictures = Counter(labels)
    enough = sum(count >= 2 for count in pictures.values())
    if enough < 2:
        raise UserError(f"{path} holds {len(labels)} pictures of {len(pictures)} people, {enough} of them with two or "
                        "more: training needs at least two people with two pictures each, add pictures")
