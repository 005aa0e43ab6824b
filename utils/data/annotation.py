"""The annotation file, `label;path` a line."""
import os
from collections import Counter
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath

from utils.data.bad_pictures import most_allowed
from utils.machine.errors import UserError
from utils.machine.files import atomic_write, read_lines, write_text

LOOKED_AT = 100  # pictures at the start of a training: each is a round trip on a network's disk


def classes_path(annotation_path):
    """cls_train.txt -> cls_classes.txt, in the same folder."""
    path = Path(annotation_path)
    return path.with_name(path.stem.removesuffix("_train") + "_classes.txt")


def write_annotation(people, path):
    """Write `label;path` lines to `path`, and `label;name` lines to classes_path(path).

    people: yields (name, paths of pictures), as the labels are to count; who has none gets no label. Nothing is written
    where it raises.
    """
    names = []
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for name, images in people:
            if images:
                file.writelines(f"{len(names)};{image}\n" for image in images)
                names.append(name)
    write_text(classes_path(path), "".join(f"{label};{name}\n" for label, name in enumerate(names)))


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


def read_names(annotation_path, people):
    """-> the names of labels 0 to people - 1 by classes_path(); the numbers where it is not there or names others."""
    try:
        rows = [line.partition(";") for line in read_lines(classes_path(annotation_path), "run txt_annotation.py")]
    except UserError:
        rows = []  # a list that another program made
    names = [name for _, _, name in rows]
    fits = [label for label, _, _ in rows] == [str(label) for label in range(people)] and all(names)
    return names if fits else [str(label) for label in range(people)]


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
