"""The annotation file, `label;path` a line, and the folder tree it is made from."""
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from utils.data.recordio import NOTE
from utils.faces.images import EXTENSIONS, open_image
from utils.machine.errors import UserError
from utils.machine.files import read_lines, write_text


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


def read_annotation(path):
    """An annotation file -> (paths, labels), two lists of equal length; labels are 0..C-1 without gaps.

    Raises UserError, which names the line, for a line that is not `label;path`, and for labels with gaps.
    """
    paths, labels = [], []
    for number, line in enumerate(read_lines(path, "run txt_annotation.py first, or give --annotation-path"), 1):
        if not line.strip():
            continue
        label, semicolon, image = line.partition(";")  # only the first: a path may hold more
        if not semicolon or not label.strip().isdecimal() or not image.strip():
            raise UserError(f"{path}, line {number}: {line[:80]!r} is not `label;path`: run txt_annotation.py again")
        paths.append(image)
        labels.append(int(label))
    if not labels:
        raise UserError(f"{path} holds no picture: run txt_annotation.py on a folder with one folder per person")
    for expected, label in enumerate(sorted(set(labels))):
        if label != expected:
            raise UserError(f"{path}: labels run to {max(labels)} but {expected} is not among them: "
                            "run txt_annotation.py again")
    return paths, labels


def read_names(annotation_path, people):
    """-> the names of labels 0 to people - 1 by classes_path(); the numbers where it is not there or names others."""
    try:
        rows = [line.partition(";") for line in read_lines(classes_path(annotation_path), "run txt_annotation.py")]
    except UserError:
        rows = []  # a list that another program made
    names = [name for _, _, name in rows]
    fits = [label for label, _, _ in rows] == [str(label) for label in range(people)] and all(names)
    return names if fits else [str(label) for label in range(people)]


def check_trainable(labels, path):
    """Raises UserError below the floor: two people, each with two pictures."""
    pictures = Counter(labels)
    enough = sum(count >= 2 for count in pictures.values())
    if enough < 2:
        raise UserError(f"{path} holds {len(labels)} pictures of {len(pictures)} people, {enough} of them with two or "
                        "more: training needs at least two people with two pictures each, add pictures")
