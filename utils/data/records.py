"""Training straight from insightface's .rec files: where each picture lies in them, and how it is read from there."""
import hashlib
import io
import os
import struct
from pathlib import Path

import numpy as np
import torch

from utils.common.errors import UserError
from utils.data.recordio import END, HEADER, MAGIC, MOST_SKIPPED, START, WHOLE, read_index, read_record, unpack
from utils.faces.images import EncodedImage

PART = 1 << 16  # records whose heads are read at once
HEAD = 8 + HEADER.size + 4  # bytes: magic number, kind and length, IRHeader, the first label behind it
PLACE = np.dtype([("number", np.int64), ("offset", np.int64), ("size", np.int64), ("label", np.int32),
                  ("file", np.int16)])


class Records:
    """A sequence of the pictures in .rec files, as EncodedImages; their places in memory are shared by processes.

    files: their paths. file, number, offset, size: of each picture: its file's place in `files`, its number by the
    index (or its place where there is none), and where its record begins and how long it is, in bytes.
    """

    def __init__(self, files, file, number, offset, size):
        self.files, self.file, self.number, self.offset, self.size = files, file, number, offset, size
        self.opened = {}  # (process, file) -> descriptor; a process that is forked opens its own

    def __len__(self):
        return len(self.offset)

    def __getitem__(self, index):
        """Raises UserError where the record is damaged."""
        try:
            record = read_record(io.BytesIO(self.read(int(self.file[index]), int(self.offset[index]),
                                                      int(self.size[index]))))
            return EncodedImage(unpack(record)[1], self.name(index))
        except (OSError, ValueError, TypeError) as error:  # the last: there is no record any more
            raise UserError(f"{self.name(index)} does not read ({error}): download it again") from None

    def read(self, file, offset, size):
        key = os.getpid(), file
        if key not in self.opened:
            self.opened[key] = open(self.files[file], "rb", buffering=0)  # noqa: SIM115, until the process ends
        self.opened[key].seek(offset)
        return self.opened[key].read(size)

    def __getstate__(self):
        return self.__dict__ | {"opened": {}}

    def name(self, index):
        return f"{self.files[int(self.file[index])]}, record {int(self.number[index])}"

    def subset(self, indices):
        """int64 tensor (M,) -> those pictures."""
        return Records(self.files, *(column[indices] for column in (self.file, self.number, self.offset, self.size)))

    def sha256(self, labels):
        """What tells this set from others without reading its pictures: places, labels and the sizes of the files."""
        digest = hashlib.sha256(repr([os.path.getsize(path) for path in self.files]).encode())
        for column in (self.file, self.number, self.offset, self.size, labels):
            digest.update(column.numpy())
        return digest.hexdigest()


def read_records_of(folder):
    """A folder with train.rec, or with several .rec files of one set -> (Records, int32 tensor of labels, skipped).

    Labels count over all files, and are numbered anew from 0 where some are not used. skipped: [(record, reason)].
    Raises UserError where there is none, where records cannot be told apart, and for more than MOST_SKIPPED.
    """
    files = find_files(folder)
    parts, skipped = [], []
    for number, path in enumerate(files):
        places, bad = read_places(path)
        places["file"] = number
        parts.append(places)
        skipped += bad
        if len(skipped) > MOST_SKIPPED:
            record, reason = skipped[-1]
            raise UserError(f"more than {MOST_SKIPPED} records are no picture of a person, {record} the last "
                            f"({reason}): it is no training set of faces")
    places = np.concatenate(parts)
    if not len(places):
        raise UserError(f"{files[0]} holds no picture of a person: it is no training set of faces")
    labels = np.unique(places["label"], return_inverse=True)[1].astype(np.int32)
    columns = (torch.from_numpy(places[name].copy()) for name in ("file", "number", "offset", "size"))
    return Records(files, *columns), torch.from_numpy(labels), skipped


def holds_records(path):
    return Path(path).is_dir() and any(Path(path).glob("*.rec"))


def find_files(folder):
    """train.rec alone where it is there, else every .rec file, by name. Raises UserError where there is none."""
    one = Path(folder, "train.rec")
    files = [one] if one.is_file() else sorted(Path(folder).glob("*.rec"))
    if not files:
        raise UserError(f"{one} does not exist: give --rec the folder that holds insightface's train.rec")
    return [str(path) for path in files]


def read_places(path):
    """A .rec file -> (PLACE array of its pictures in their order there, [(record, reason)] of what is none).

    By its index, <name>.idx, where there is one. Only the heads of the records are read.
    """
    index_path, size = Path(path).with_suffix(".idx"), os.path.getsize(path)
    content = np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)
    if index_path.exists():
        numbers, offsets = read_index(index_path, Path(path)).T
    else:
        offsets = np.fromiter(walk(content, path), np.int64)
        numbers = np.arange(len(offsets))
    parts, skipped = [np.empty(0, PLACE)], []
    for begin in range(0, len(offsets), PART):
        part, bad = read_heads(content, numbers[begin:begin + PART], offsets[begin:begin + PART], path)
        parts.append(part)
        skipped += bad
    return np.concatenate(parts), skipped


def walk(content, path):
    """Yield where the records begin, one after the other."""
    place, within = 0, False
    while place < len(content):
        head = content[place:place + 8].tobytes()
        if head[:4] != MAGIC or len(head) < 8:
            raise UserError(f"{path}, byte {place}: no record begins here: download it again")
        kind, length = divmod(struct.unpack("<I", head[4:])[0], 1 << 29)
        if not within:
            yield place
        within = kind not in (WHOLE, END) if not within else kind != END
        place += 8 + length + -length % 4
    if place > len(content) or within:
        raise UserError(f"{path}: the file ends within a record: download it again")


def read_heads(content, numbers, offsets, path):
    """-> (PLACE array, [(record, reason)]) of the records at these offsets. Raises UserError where none begins."""
    heads = content[np.minimum(offsets[:, None] + np.arange(HEAD), len(content) - 1)]

    def column(begin, kind):
        return np.ascontiguousarray(heads[:, begin:begin + 4]).view(kind)[:, 0]

    kinds, lengths = np.divmod(column(4, "<u4").astype(np.int64), 1 << 29)
    sizes = 8 + lengths + -lengths % 4
    flags = column(8, "<u4").astype(np.int64)
    labels = np.where(flags > 0, column(8 + HEADER.size, "<f4"), column(12, "<f4"))
    for place in np.flatnonzero((column(0, "<u4") != struct.unpack("<I", MAGIC)[0]) | (kinds > START)
                                | (offsets + sizes > len(content))).tolist():
        check_record(content, int(offsets[place]), path)
    begins = HEADER.size + 4 * flags
    empty = (flags > 0) & (begins == lengths) & (kinds == WHOLE)
    with np.errstate(invalid="ignore"):
        fits = (lengths >= HEADER.size) & (begins <= lengths) & (labels == np.floor(labels)) & (labels >= 0) & (
            labels < 1 << 24)
    skipped = []
    for place in np.flatnonzero((kinds == START) | (~fits & ~empty)).tolist():  # rare ones, one by one
        record, sizes[place] = check_record(content, int(offsets[place]), path)
        try:
            label, picture, _ = unpack(record)
            fits[place], empty[place] = picture is not None, picture is None
            labels[place] = label if picture else 0
        except ValueError as error:
            fits[place] = False
            skipped.append((f"{path}, record {numbers[place]}", str(error)))
    kept = fits & ~empty
    found = np.zeros(kept.sum(), PLACE)
    for name, values in (("number", numbers), ("offset", offsets), ("size", sizes), ("label", labels)):
        found[name] = values[kept]
    return found, skipped


def check_record(content, offset, path):
    """-> (payload, its bytes in the file). Raises UserError, which names the byte, where no whole record is."""
    file = MemoryReader(content, offset)
    try:
        return read_record(file), file.place - offset
    except ValueError as error:
        raise UserError(f"{path}, byte {offset}: {error}: download it again") from None


class MemoryReader:
    """Reads a uint8 array as a file is read, from a place on."""

    def __init__(self, content, place):
        self.content, self.place = content, place

    def read(self, size):
        found = self.content[self.place:self.place + size].tobytes()
        self.place += len(found)
        return found
