"""The annotation file: one `label;path` line per image."""
import codecs
import os
import re
from array import array
from pathlib import Path

import numpy as np
import torch

from utils.common.errors import UserError
from utils.common.files import atomic_write, read_lines, write_text

MAX_DIGITS = 9  # of a label: they fit int32
SAMPLED = 100  # images whose files are looked for before training: each is a round trip on a network file system


class PackedPaths:
    """A sequence of paths that loader workers share instead of copying.

    Reading a str changes its reference count, so a list of 5 million would copy 590 MB into every forked worker.

    text: bytearray, the paths in UTF-8, one after another. lengths: array("i") of N, in bytes.
    root: None, or the folder that the identity folders are now in. The old paths may be those of Windows.
    """

    def __init__(self, text, lengths, root=None):
        self.text = torch.frombuffer(text, dtype=torch.uint8)
        self.lengths = torch.frombuffer(lengths, dtype=torch.int32)
        self.begins = self.lengths.cumsum(0) - self.lengths
        self.root = root

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        begin = int(self.begins[index])
        path = self.text[begin:begin + int(self.lengths[index])].numpy().tobytes().decode("utf-8", "surrogateescape")
        return os.path.join(self.root, *re.split(r"[/\\]+", path)[-2:]) if self.root else path


def pack(paths):
    """Return the PackedPaths of a list of str."""
    encoded = [path.encode("utf-8", "surrogateescape") for path in paths]
    return PackedPaths(bytearray().join(encoded), array("i", map(len, encoded)))


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
    """Read an annotation file into (PackedPaths, int32 tensor of labels 0..C-1). Blank lines are left out.

    root: the folder that the identity folders are now in, if they have moved.
    Raises UserError if a line, which it names, is not `label;path`, and if a label is missing.
    """
    text, lengths, labels = bytearray(), array("i"), array("i")
    try:
        with open(path, "rb") as file:
            if file.read(3) != codecs.BOM_UTF8:
                file.seek(0)
            for number, line in enumerate(file, 1):
                label, _, image = line.rstrip(b"\r\n").partition(b";")
                if label.isdigit() and len(label) <= MAX_DIGITS and image:
                    labels.append(int(label))
                    lengths.append(len(image))
                    text += image
                elif line.strip():
                    raise UserError(f"{path}, line {number}: {line[:80].decode('utf-8', 'replace').strip()!r} is not "
                                    "`label;path`: run txt_annotation.py again")
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): run txt_annotation.py first, or give "
                        "--annotation-path") from None
    classes = np.unique(labels)
    if not len(classes):
        raise UserError(f"{path} lists no image: run txt_annotation.py on a folder with one folder per person")
    if classes[-1] >= len(classes):
        missing = np.flatnonzero(classes != np.arange(len(classes)))[0]
        raise UserError(f"{path}: labels run to {classes[-1]} but {missing} is not among them: run txt_annotation.py "
                        "again")
    return PackedPaths(text, lengths, root), torch.frombuffer(labels, dtype=torch.int32)


def read_names(annotation_path, num_classes):
    """Return the class names from classes_path(), or the labels as names if that file is missing or does not fit."""
    labels = [str(label) for label in range(num_classes)]
    try:
        found, _, names = zip(*(line.partition(";") for line in read_lines(classes_path(annotation_path), "")))
    except UserError:
        return labels  # another program wrote the list
    return list(names) if list(found) == labels and all(names) else labels


def check_files_exist(paths, annotation_path):
    """Raise UserError if several of at most 199 images, spread over the list, do not exist."""
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
