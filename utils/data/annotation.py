"""The annotation file: one `label;path` line per image."""
import codecs
import os
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import torch

from utils.common.errors import UserError
from utils.common.files import atomic_write, read_lines, write_text

NEWLINE, RETURN, SEMICOLON, ZERO = b"\n\r;0"
MAX_DIGITS = 9  # of a label: they fit int32
SAMPLED = 100  # images whose files are looked for before training: each is a round trip on a network file system


class PackedPaths:
    """A sequence of paths that loader workers share instead of copying.

    Reading a str changes its reference count, so a list of 5 million would copy 590 MB into every forked worker.

    text: uint8 tensor, the paths in UTF-8. begins, lengths: tensors (N,), in bytes.
    root: None, or the folder that the identity folders are now in.
    """

    def __init__(self, text, begins, lengths, root=None):
        self.text, self.begins, self.lengths, self.root = text, begins, lengths, root

    def __len__(self):
        return len(self.begins)

    def __getitem__(self, index):
        begin = int(self.begins[index])
        path = self.text[begin:begin + int(self.lengths[index])].numpy().tobytes().decode("utf-8", "surrogateescape")
        return move(path, self.root) if self.root else path


def pack(paths):
    """Return the PackedPaths of a list of str."""
    encoded = [path.encode("utf-8", "surrogateescape") for path in paths]
    lengths = torch.tensor([len(path) for path in encoded], dtype=torch.int32)
    text = torch.from_numpy(np.frombuffer(bytearray(b"".join(encoded)), np.uint8))
    return PackedPaths(text, lengths.cumsum(0) - lengths, lengths)


def move(path, root):
    """Return the path of an image whose identity folder is now in `root`. The old path may be one of Windows."""
    pure_path = PurePosixPath(path) if "/" in path else PureWindowsPath(path)
    return os.path.join(root, *pure_path.parts[-2:])


def classes_path(annotation_path):
    """Return the path of the file of class names: cls_train.txt -> cls_classes.txt, in the same folder."""
    path = Path(annotation_path)
    return path.with_name(path.stem.removesuffix("_train") + "_classes.txt")


def write_annotation(identities, path):
    """Write the `label;path` lines of all images to `path` and `label;name` lines to classes_path(path).

    identities: iterable of (name, paths of its images), in the order of the labels. If it raises, nothing is written.
    """
    names = []
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for name, images in identities:
            file.writelines(f"{len(names)};{image}\n" for image in images)
            names.append(name)
    write_text(classes_path(path), "".join(f"{label};{name}\n" for label, name in enumerate(names)))


def read_annotation(path, root=None):
    """Read an annotation file into (PackedPaths, int32 tensor of labels 0..C-1).

    root: the folder that the identity folders are now in, if they have moved.
    Raises UserError if a line, which it names, is not `label;path`, and if a label is missing.
    """
    text = read_text(path)
    begins, lengths, labels = parse_lines(text, path)
    classes = np.unique(labels)
    if not len(classes):
        raise UserError(f"{path} lists no image: run txt_annotation.py on a folder with one folder per person")
    if classes[-1] >= len(classes):
        missing = np.flatnonzero(classes != np.arange(len(classes)))[0]
        raise UserError(f"{path}: labels run to {classes[-1]} but {missing} is not among them: run txt_annotation.py "
                        "again")
    return PackedPaths(*map(torch.from_numpy, (text, begins, lengths)), root), torch.from_numpy(labels)


def read_text(path):
    """Return the bytes of a text file as a uint8 array that ends with a newline, without a byte order mark."""
    try:
        text = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): run txt_annotation.py first, or give "
                        "--annotation-path") from None
    if text[:3].tobytes() == codecs.BOM_UTF8:
        text = text[3:]
    return np.append(text, np.uint8(NEWLINE))


def parse_lines(text, path):
    """Return begins (int64), lengths and labels (int32) of the paths in a text. Blank lines are left out.

    It is vectorised: 5 million lines take 2 seconds.
    """
    ends = np.flatnonzero(text == NEWLINE)
    starts = np.append(0, ends[:-1] + 1)
    stops = ends - ((text[ends - 1] == RETURN) & (ends > starts))
    semicolons = np.append(np.flatnonzero(text == SEMICOLON), len(text))
    semicolons = semicolons[np.searchsorted(semicolons, starts)]  # the first of each line: a path may hold more
    digits, labels = semicolons - starts, np.zeros(len(ends), np.int32)
    valid = (digits > 0) & (digits <= MAX_DIGITS) & (semicolons + 1 < stops)
    for position in range(int(digits[valid].max(initial=0))):
        longer = valid & (digits > position)
        digit = text[starts[longer] + position] - np.uint8(ZERO)  # wraps around to above 9 if it is no digit
        labels[longer] = labels[longer] * 10 + digit
        valid[longer] &= digit < 10
    for line in np.flatnonzero(~valid & (stops > starts)).tolist():
        content = text[starts[line]:stops[line]].tobytes().decode("utf-8", "replace")
        if content.strip():
            raise UserError(f"{path}, line {line + 1}: {content[:80]!r} is not `label;path`: run txt_annotation.py "
                            "again")
    begins = semicolons[valid] + 1
    return begins, (stops[valid] - begins).astype(np.int32), labels[valid]


def read_names(annotation_path, num_classes):
    """Return the class names from classes_path(), or the labels as names if that file is missing or does not fit."""
    labels = [str(label) for label in range(num_classes)]
    try:
        rows = [line.partition(";") for line in read_lines(classes_path(annotation_path), "")]
    except UserError:
        return labels  # another program wrote the list
    names = [name for _, _, name in rows]
    return names if [label for label, _, _ in rows] == labels and all(names) else labels


def check_files_exist(paths, annotation_path):
    """Raise UserError if several of about a hundred images, spread over the list, do not exist."""
    sample = range(0, len(paths), max(1, len(paths) // SAMPLED))
    missing = [paths[index] for index in sample if not os.path.exists(paths[index])]
    if len(missing) > 1:
        raise UserError(f"{annotation_path}: {len(missing)} of {len(sample)} images do not exist, {missing[0]} first: "
                        "give --datasets-path if they have moved, or run txt_annotation.py again")


def check_trainable(labels, path):
    """Raise UserError unless at least two identities have at least two images each."""
    counts = torch.bincount(labels)
    enough = int((counts >= 2).sum())
    if enough < 2:
        raise UserError(f"{path} holds {len(labels)} images of {len(counts)} people, {enough} of them with two or "
                        "more: training needs at least two people with two images each, add images")
