"""The annotation file: one `label;path` line per image."""
import codecs
import os
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import torch

from utils.common.errors import UserError
from utils.common.files import atomic_write, read_lines, write_text

NEWLINE, RETURN, SEMICOLON, ZERO = b"\n\r;0"
BLOCK_BYTES = 1 << 22  # of the file that are parsed at once, which bounds the memory
MAX_DIGITS = 9  # of a label: they fit int32
SAMPLED = 100  # images whose files are looked for before training: each is a round trip on a network file system


class PackedPaths:
    """A sequence of paths that loader workers share instead of copying.

    A list of str would be copied into every forked worker, because reading a str changes its reference count: 590 MB
    for 5 million paths. Tensors stay shared.

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
    Memory beside the text: 16 bytes per line, and 16 more while reading. Speed: 5 million lines in 2 seconds.

    Raises UserError if a line, which it names, is not `label;path`, and if a label is missing.
    """
    text, columns, begin, lines = read_text(path), [], 0, 0
    while begin < len(text):
        *block_columns, end, count = parse_block(text, begin, lines, path)
        columns.append(block_columns)
        begin, lines = end, lines + count
    if not sum(len(labels) for _, _, labels in columns):
        raise UserError(f"{path} lists no image: run txt_annotation.py on a folder with one folder per person")
    begins, lengths, labels = (torch.from_numpy(np.concatenate(column)) for column in zip(*columns))
    classes = np.unique(labels.numpy())
    if classes[-1] >= len(classes):
        missing = int(np.flatnonzero(classes != np.arange(len(classes)))[0])
        raise UserError(f"{path}: labels run to {classes[-1]} but {missing} is not among them: run txt_annotation.py "
                        "again")
    return PackedPaths(torch.from_numpy(text), begins, lengths, root), labels


def read_text(path):
    """Return the bytes of a text file as a uint8 array that ends with a newline, without a byte order mark."""
    try:
        text = np.fromfile(path, np.uint8)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run txt_annotation.py first, or give --annotation-path") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if text[:3].tobytes() == codecs.BOM_UTF8:
        text = text[3:]
    return text if text[-1:].tobytes() == b"\n" else np.append(text, np.uint8(NEWLINE))


def parse_block(text, begin, lines, path):
    """Parse about BLOCK_BYTES of the text, up to the end of a line.

    lines: the number of lines before the block, for messages.
    Returns begins (int64), lengths and labels (int32) of the paths, the end of the block and its number of lines.
    """
    block = text[begin:begin + BLOCK_BYTES]
    ends = np.flatnonzero(block == NEWLINE)
    if not len(ends):
        raise UserError(f"{path} is not a list of images: run txt_annotation.py again")
    block = block[:ends[-1] + 1]
    check_utf8(block, path)
    starts = np.append(0, ends[:-1] + 1)
    stops = ends - ((block[ends - 1] == RETURN) & (ends > starts))
    semicolons = np.append(np.flatnonzero(block == SEMICOLON), len(block))
    semicolons = semicolons[np.searchsorted(semicolons, starts)]  # the first of each line: a path may hold more
    digits, labels = semicolons - starts, np.zeros(len(ends), np.int32)
    valid = (digits > 0) & (digits <= MAX_DIGITS) & (semicolons + 1 < stops)
    for position in range(int(digits[valid].max(initial=0))):
        longer = valid & (digits > position)
        digit = block[starts[longer] + position] - np.uint8(ZERO)  # wraps around to above 9 if it is no digit
        labels[longer] = labels[longer] * 10 + digit
        valid[longer] &= digit < 10
    for line in np.flatnonzero(~valid & (stops > starts)).tolist():
        content = block[starts[line]:stops[line]].tobytes().decode("utf-8")
        if content.strip():
            raise UserError(f"{path}, line {lines + line + 1}: {content[:80]!r} is not `label;path`: run "
                            "txt_annotation.py again")
    path_begins = semicolons[valid] + 1
    lengths = (stops[valid] - path_begins).astype(np.int32)
    return path_begins + begin, lengths, labels[valid], begin + len(block), len(ends)


def check_utf8(block, path):
    try:
        if block.max() > 127:
            block.tobytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {path} as UTF-8 text ({error.reason}): run txt_annotation.py again") from None


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
    missing = [index for index in sample if not os.path.exists(paths[index])]
    if len(missing) > 1:
        raise UserError(f"{annotation_path}: {paths[missing[0]]} does not exist, nor do {len(missing) - 1} of "
                        f"{len(sample) - 1} other images: give --datasets-path if they have moved, or run "
                        "txt_annotation.py again")


def check_trainable(labels, path):
    """Raise UserError unless at least two identities have at least two images each."""
    counts = torch.bincount(labels)
    enough = int((counts >= 2).sum())
    if enough < 2:
        raise UserError(f"{path} holds {len(labels)} images of {len(counts)} people, {enough} of them with two or "
                        "more: training needs at least two people with two images each, add images")
