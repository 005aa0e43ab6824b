"""insightface's training sets, train.rec and train.idx: their records, and them as a folder of pictures, without MXNet.

train.rec is MXNet's RecordIO. A record is one or more parts, each: the magic number, a word with the kind of part in
its upper 3 bits and the length in the others, the bytes, and zeros up to a multiple of 4. A payload that holds the
magic number at a multiple of 4 is cut there and that number left out (dmlc-core, include/dmlc/recordio.h).
The payload begins with IRHeader: flag, label, id, id2, and as many float32 labels as the flag says, which then count
instead of the first (MXNet, python/mxnet/recordio.py). insightface adds records without a picture, one for the file
and one for each person (src/data/face2rec2.py). train.idx, where it is there, is `number<TAB>offset` a line.
"""
import os
import struct
import warnings
from itertools import count
from pathlib import Path

import numpy as np

from utils.common.errors import UserError
from utils.common.files import atomic_write, write_text

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
