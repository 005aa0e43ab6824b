"""The annotation file, `label;path` a line."""
import codecs
import os
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import torch

from utils.common.errors import UserError
from utils.common.files import atomic_write, read_lines, write_text
from utils.data.bad_pictures import most_allowed

NEWLINE, RETURN, SEMICOLON = b"\n\r;"
BLOCK = 1 << 22  # bytes of a list that are read at once
MOST_DIGITS = 9  # of a label that certainly fits int32
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
    """An annotation file -> (PackedPaths, int32 tensor of labels) of equal length; labels are 0..C-1 without gaps.

    root: where the folders of the people are now, if they have moved.
    Beside the text itself it takes 32 bytes a line. Raises UserError, which names the line, for a line that is not
    `label;path`, and for labels with gaps.
    """
    text, parts, number = read_bytes(path), [], 0
    for begin, end in blocks(text):
        check_utf8(text[begin:end], begin, path)
        *part, lines = read_block(text, begin, end, number, path)
        parts.append(part)
        number += lines
    begins, lengths, labels = (torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True))
    if not len(labels):
        raise UserError(f"{path} holds no picture: run txt_annotation.py on a folder with one folder per person")
    check_gaps(labels.numpy(), path)
    return PackedPaths(torch.from_numpy(text), begins, lengths, root), labels


def read_bytes(path):
    """The bytes of a text file as a uint8 array, without the mark of their order, a line end behind them."""
    try:
        with open(path, "rb") as file:
            text = np.empty(os.fstat(file.fileno()).st_size + 1, np.uint8)
            count = file.readinto(text[:-1])
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run txt_annotation.py first, or give --annotation-path") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    text[count] = NEWLINE
    return text[3 * text[:3].tobytes().startswith(codecs.BOM_UTF8):count + 1]


def blocks(text):
    """Yield (begin, end) of parts of whole lines, of about BLOCK bytes."""
    begin = 0
    while begin < len(text):
        end = min(begin + BLOCK, len(text))
        while end < len(text) and text[end - 1] != NEWLINE:
            end += 1
        yield begin, end
        begin = end


def check_utf8(block, begin, path):
    try:
        if (block > 127).any():
            block.tobytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {path} as UTF-8 text: {error.reason} at byte {begin + error.start}") from None


def read_block(text, begin, end, number, path):
    """-> where the paths begin in the text (int64), their lengths and labels (int32), and how many lines there are.

    number: of the lines before. Ordinary lines are read all at once, by numpy; the others, and those with a mistake,
    one by one.
    """
    block = text[begin:end]
    returns = np.flatnonzero(block == RETURN)
    block[returns[block[returns + 1] != NEWLINE]] = NEWLINE  # the line ends of old Macintoshes
    ends = np.flatnonzero(block == NEWLINE)
    starts = np.concatenate([[0], ends[:-1] + 1])
    stops = ends - (block[ends - 1] == RETURN) * (ends > starts)
    semicolons = np.append(np.flatnonzero(block == SEMICOLON), len(block))
    first = semicolons[np.searchsorted(semicolons, starts)]
    digits, labels = first - starts, np.zeros(len(ends), np.int32)
    plain = (digits > 0) & (digits <= MOST_DIGITS) & (first + 1 < stops)
    for place in range(int(digits[plain].max(initial=0))):
        here = plain & (digits > place)
        value = block[starts[here] + place] - np.uint8(ord("0"))  # of no digit it is above 9
        labels[here] = labels[here] * 10 + value
        plain[here] &= value < 10
    beginning = block[np.minimum(first + 1, len(block) - 1)]
    plain &= (beginning > ord(" ")) & (beginning < 128)
    for line in np.flatnonzero(~plain & (stops > starts)).tolist():
        found = read_line(block[starts[line]:stops[line]].tobytes().decode("utf-8"), number + line + 1, path)
        if found:
            labels[line], digits_and_more = found
            first[line], plain[line] = starts[line] + digits_and_more, True
    begins = first[plain] + 1
    return begins + begin, (stops[plain] - begins).astype(np.int32), labels[plain], len(ends)


def read_line(line, number, path):
    """-> (label, bytes before the semicolon), None for an empty line. Raises UserError for one of another form."""
    if not line.strip():
        return None
    label, semicolon, image = line.partition(";")  # only the first: a path may hold more
    if not semicolon or not label.strip().isdecimal() or not image.strip():
        raise UserError(f"{path}, line {number}: {line[:80]!r} is not `label;path`: run txt_annotation.py again")
    return min(int(label), np.iinfo(np.int32).max), len(label.encode("utf-8"))


def check_gaps(labels, path):
    present = np.zeros(len(labels) + 1, bool)
    present[np.minimum(labels, len(labels))] = True
    gap, highest = int(np.argmin(present)), int(labels.max())
    if not present.all() and gap < highest:
        raise UserError(f"{path}: labels run to {highest} but {gap} is not among them: run txt_annotation.py again")


def read_names(annotation_path, people):
    """-> the names of labels 0 to people - 1 by classes_path(); the numbers where it is not there or names others."""
    try:
        rows = [line.partition(";") for line in read_lines(classes_path(annotation_path), "run txt_annotation.py")]
    except UserError:
        rows = []  # a list that another program made
    names = [name for _, _, name in rows]
    fits = [label for label, _, _ in rows] == [str(label) for label in range(people)] and all(names)
    return names if fits else [str(label) for label in range(people)]


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
    pictures = np.unique(np.asarray(labels), return_counts=True)[1]
    enough = (pictures >= 2).sum()
    if enough < 2:
        raise UserError(f"{path} holds {len(labels)} pictures of {len(pictures)} people, {enough} of them with two or "
                        "more: training needs at least two people with two pictures each, add pictures")


class PackedPaths:
    """A sequence of paths: uint8 text (UTF-8), and where in it each begins and how long it is.

    A list of str would be copied into every loader process: Python counts the references of each str in the page that
    holds it, 590 MB at 5 million. A tensor that is only read stays shared. Where processes are spawned, torch moves it
    into shared memory the first time that it is sent.

    root: where the folders of the people are now; None where the paths say.
    """

    def __init__(self, text, begins, lengths, root=None):
        self.text, self.begins, self.lengths, self.root = text, begins, lengths, root

    def __len__(self):
        return len(self.begins)

    def __getitem__(self, index):
        if not -len(self) <= index < len(self):
            raise IndexError(f"{index} of {len(self)} paths")
        begin = int(self.begins[index])
        path = self.text[begin:begin + int(self.lengths[index])].numpy().tobytes().decode("utf-8")
        return moved(path, self.root) if self.root else path

    name = __getitem__  # how a message calls a picture

    def subset(self, indices):
        """int64 tensor (M,) -> those paths; the text stays one."""
        return PackedPaths(self.text, self.begins[indices], self.lengths[indices], self.root)


def pack(paths):
    """Paths -> PackedPaths."""
    coded = [os.fspath(path).encode("utf-8") for path in paths]
    lengths = torch.tensor([len(path) for path in coded], dtype=torch.int32)
    text = torch.from_numpy(np.frombuffer(bytearray(b"".join(coded)), np.uint8).copy())
    return PackedPaths(text, lengths.cumsum(0) - lengths, lengths)


def moved(path, root):
    """Where a picture is when its person's folder lies in another root. The path may be one of Windows."""
    kind = PurePosixPath if "/" in path else PureWindowsPath
    return os.path.join(root, *kind(path).parts[-2:])
