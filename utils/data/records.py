"""insightface's training sets, train.rec and train.idx: their records, and them as a folder of pictures, without MXNet.

train.rec is MXNet's RecordIO. A record is one or more parts, each: the magic number, a word with the kind of part in
its upper 3 bits and the length in the others, the bytes, and zeros up to a multiple of 4. A payload that holds the
magic number at a multiple of 4 is cut there and that number left out (dmlc-core, include/dmlc/recordio.h).
The payload begins with IRHeader: flag, label, id, id2, and as many float32 labels as the flag says, which then count
instead of the first (MXNet, python/mxnet/recordio.py). insightface adds records without a picture, one for the file
and one for each person (src/data/face2rec2.py). train.idx, where it is there, is `number<TAB>offset` a line.
"""
import hashlib
import io
import os
import struct
import warnings
from itertools import count
from pathlib import Path

import numpy as np
import torch

from utils.common.errors import UserError
from utils.common.files import atomic_write, write_text
from utils.faces.images import EncodedImage

MAGIC = struct.pack("<I", 0xCED7230A)
WHOLE, START, MIDDLE, END = range(4)
HEADER = struct.Struct("<IfQQ")
SUFFIXES = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png"}
MOST_SKIPPED = 1000        # beyond, the file is of another kind
NOTE = ".extracted_from"   # in the folder of pictures: the file that they come from


def extract(folder, target, progress):
    """Write the pictures of <folder>/train.rec to <target>/<label>/<number>.jpg, byte by byte as they are stored.

    The number is that of train.idx, or where there is none the record's place in the file, from 0 on, as MXNet's
    rec2idx counts. A picture that is there in its size is not written again, so an interrupted run goes on.
    progress: called as progress(total=bytes), and has `n` and `update`, such as tqdm.
    -> (pictures, those of them that were there already, [(record, reason)] of what was skipped).
    Raises UserError for a file whose records cannot be told apart, and for a target that holds other things.
    """
    path, index_path = Path(folder, "train.rec"), Path(folder, "train.idx")
    if not path.is_file():
        raise UserError(f"{path} does not exist: give --rec the folder that holds insightface's train.rec")
    index = read_index(index_path, path) if index_path.exists() else None
    claim(target, f"{path.name} of {path.stat().st_size} bytes, numbered by "
                  f"{'place' if index is None else index_path.name}")
    pictures, there, skipped = 0, 0, []
    with progress(total=path.stat().st_size) as bar:
        for number, end, record in read_records(path, index):
            bar.update(end - bar.n)
            try:
                label, picture, suffix = unpack(record)
            except ValueError as error:
                skipped.append((f"{path}, record {number}", str(error)))
                if len(skipped) > MOST_SKIPPED:
                    raise UserError(f"{path}: more than {MOST_SKIPPED} records are no picture of a person, record "
                                    f"{number} the last ({error}): it is no training set of faces") from None
                continue
            if picture:
                pictures += 1
                there += not write_picture(os.path.join(target, str(label), f"{number}{suffix}"), picture)
    if not pictures:
        raise UserError(f"{path} holds no picture of a person: it is no training set of faces")
    return pictures, there, skipped


def write_picture(path, picture):
    """-> whether it had to be written.

    Without fsync, which costs 3.5 instead of 0.2 ms a picture, 6 hours instead of 20 minutes for MS1M's 5.8 million:
    what a power cut leaves has another size, or the scan finds that it does not decode.
    """
    try:
        if os.stat(path).st_size == len(picture):
            return False
    except OSError:
        pass
    with atomic_write(path, durable=False) as temporary:
        temporary.write_bytes(picture)
    return True


def claim(target, source):
    """Leave a note in the target about its source. Raises UserError for a folder with another note, or without one.

    Two training sets in one folder would give two people one label.
    """
    note = Path(target, NOTE)
    try:
        if note.exists():
            found = note.read_text(encoding="utf-8").strip()
            if found != source:
                raise UserError(f"{target} holds pictures of {found}, this is {source}: give another --datasets-path")
        elif os.path.exists(target) and os.listdir(target):
            raise UserError(f"{target} is not empty and --rec did not make it: give another --datasets-path")
        else:
            write_text(note, source + "\n")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write into {target}: {error}") from None


def read_index(path, record_path):
    """train.idx -> numbers and offsets, int64 (N, 2), by offset, so that the disk is read in one direction.

    Raises UserError for a malformed line, a number that comes twice, and an offset beyond the end of record_path.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about an empty file
            index = np.loadtxt(path, np.int64, delimiter="\t", ndmin=2)
        if index.shape[1] != 2 or not len(index):
            raise ValueError(f"{len(index)} lines of {index.shape[1]} columns")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is not `number<TAB>offset` a line ({error}): remove it, or download it again") from None
    index = index[index[:, 1].argsort(kind="stable")]
    size = record_path.stat().st_size
    for offset in index[[0, -1], 1]:
        if not 0 <= offset < size:
            raise UserError(f"{path} tells of a record at byte {offset}, but {record_path} has {size} bytes: one of "
                            "them is cut off or of another set, download both again")
    numbers = np.sort(index[:, 0])
    twice = numbers[1:][numbers[1:] == numbers[:-1]]
    if len(twice):
        raise UserError(f"{path} has the number {twice[0]} twice: remove it to number the records by their place")
    check_end(index[-1, 1], path, record_path)
    return index


def check_end(offset, path, record_path):
    """Raises UserError where the last record that the index at `path` tells of is not the file's last one."""
    with open(record_path, "rb") as file:
        try:
            file.seek(offset)
            read_record(file)
        except ValueError:
            return  # read_records names it
        left = record_path.stat().st_size - file.tell()
    if left:
        raise UserError(f"{path} ends before {record_path}, which has {left} bytes behind the last record that it "
                        "tells of: download it again, or remove it to number the records by their place")


def read_records(path, index=None):
    """Yield (number, the offset behind it, payload) of the records in an index, or of all where there is none.

    Raises UserError, which names the byte, where no whole record is.
    """
    with open(path, "rb") as file:
        places = ((number, file.tell()) for number in count()) if index is None else (row.tolist() for row in index)
        for number, offset in places:
            try:
                file.seek(offset)
                record = read_record(file)
            except (OSError, ValueError) as error:
                raise UserError(f"{path}, byte {offset}: {error}: download it again") from None
            if record is None:
                return
            yield number, file.tell(), record


def read_record(file):
    """The payload at the file's position, or None at its end. Raises ValueError where no whole record is."""
    parts = []
    while True:
        head = file.read(8)
        if not head and not parts:
            return None
        if len(head) < 8:
            raise ValueError("the file ends within a record")
        if head[:4] != MAGIC:
            raise ValueError("no record begins here")
        kind, length = divmod(struct.unpack("<I", head[4:])[0], 1 << 29)
        if kind not in ((MIDDLE, END) if parts else (WHOLE, START)):
            raise ValueError(f"a part of kind {kind} out of its order")
        part = file.read(length)
        if len(part) < length:
            raise ValueError("the file ends within a record")
        file.read(-length % 4)
        parts.append(part)
        if kind in (WHOLE, END):
            return MAGIC.join(parts)


def unpack(record):
    """A payload -> (label, bytes of the picture, suffix); three None for insightface's records without a picture.

    Those are known by their emptiness. insightface goes by the number of pictures in the first label of record 0, a
    float32, which rounds it beyond 2^24: Glint360K has more. Raises ValueError, which says why, for anything else.
    """
    if len(record) < HEADER.size:
        raise ValueError("shorter than its header")
    flag, label, _, _ = HEADER.unpack_from(record)
    begin = HEADER.size + 4 * flag
    if begin > len(record):
        raise ValueError("shorter than its labels")
    if flag and begin == len(record):
        return None, None, None
    if flag:
        label, = struct.unpack_from("<f", record, HEADER.size)
    if not label.is_integer() or not 0 <= label < 1 << 24:  # beyond, float32 cannot tell people apart
        raise ValueError(f"the label {label:g} is no person's number")
    picture = record[begin:]
    for beginning, suffix in SUFFIXES.items():  # the scan decodes them all afterwards
        if picture.startswith(beginning):
            return int(label), picture, suffix
    raise ValueError("neither JPEG nor PNG")


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
