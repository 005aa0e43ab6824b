"""insightface's verification files, such as lfw.bin, cfp_fp.bin and agedb_30.bin, read so that they can run nothing.

Such a file is the pickle of ([picture, ...], [genuine, ...]): pictures 2i and 2i+1, JPEG files, are pair i, and the
pairs are those of ten folds in order. A picture is bytes, of Python 2 or 3 (insightface, src/data/lfw2pack.py), or the
uint8 array that cv2.imencode returns (cfp2pack.py, agedb2pack.py). What is genuine may be numpy's booleans or numbers,
or an array of them.
"""
import io
import pickle
import pickletools
import struct
from pathlib import Path

import numpy as np

from utils.common.errors import UserError, first_line
from utils.evaluation.lfw import Pairs
from utils.faces.images import EncodedImage

FOLDS = 10


def read_verification_file(path):
    """-> Pairs over EncodedImages; equal pictures are listed once, and the name is the file's without its suffix.

    Raises UserError for a file that is missing, truncated, of another shape, or a pickle that holds anything else.
    Ten folds must have the same number of pairs, as in the published files (500, 600 or 700 each); insightface itself,
    by KFold, would make the first folds one pair longer.
    """
    path = Path(path)
    contents, genuine = load(path)
    if len(contents) != 2 * len(genuine) or not genuine:
        raise UserError(f"{path} holds {len(contents)} pictures for {len(genuine)} pairs: download or pack it again")
    if len(genuine) % FOLDS:
        raise UserError(f"{path}: {len(genuine)} pairs do not divide into {FOLDS} folds: pack a multiple of {FOLDS}")
    of_fold = np.reshape(genuine, (FOLDS, -1)).mean(1)
    if not ((of_fold > 0) & (of_fold < 1)).all():
        raise UserError(f"{path}: fold {np.argmin((of_fold > 0) & (of_fold < 1)) + 1} of {FOLDS} lacks genuine or "
                        "impostor pairs: pack pairs of both kinds into every fold")
    numbers = {}  # content -> its place in Pairs.paths: the 12,000 pictures of lfw.bin are 7,701 distinct ones
    places = np.array([numbers.setdefault(content, len(numbers)) for content in contents])
    first_seen = np.unique(places, return_index=True)[1]
    pictures = [EncodedImage(contents[number], f"{path}, picture {number}") for number in first_seen]
    return Pairs(pictures, places[0::2], places[1::2], np.array(genuine, bool), FOLDS, path.stem)


def load(path):
    """-> (list of bytes, list of bool). Raises UserError."""
    try:
        if path.exists() and not path.is_file():
            raise pickle.UnpicklingError("it is a directory or a device")
        data = path.read_bytes()
        check_lengths(data)
        content = VerificationUnpickler(data).load()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give --bin an insightface file such as lfw.bin") from None
    except Exception as error:  # bytes that are no pickle may raise anything
        raise UserError(f"{path} is no verification file ({first_line(error)}): download or pack it again") from None
    try:
        pictures, flags = content
        flags = flags.values() if isinstance(flags, StoredArray) else flags
        if not isinstance(pictures, list | tuple) or not isinstance(flags, list | tuple):
            raise TypeError
        pictures = [picture.content if isinstance(picture, StoredArray) else picture for picture in pictures]
        flags = [value for flag in flags for value in (flag.values() if isinstance(flag, StoredArray) else [flag])]
        if not all(isinstance(picture, bytes) for picture in pictures) or not all(flag in (0, 1) for flag in flags):
            raise TypeError
    except (TypeError, ValueError):
        raise UserError(f"{path} is no verification file: expected (JPEG files, a true or false per pair)") from None
    return pictures, flags


# How pickletools says that an argument is preceded by its length, and how that is written.
LENGTHS = {pickletools.TAKEN_FROM_ARGUMENT1: "<B", pickletools.TAKEN_FROM_ARGUMENT4: "<i",
           pickletools.TAKEN_FROM_ARGUMENT4U: "<I", pickletools.TAKEN_FROM_ARGUMENT8U: "<Q"}

MOST_GAPS = 1000  # in the numbers of memos: writers leave none, optimisers of pickles some


def check_lengths(data):
    """Raises ValueError where a pickle tells of more than it holds: the unpickler would make room for it first.

    That is a length beyond the end, or a memo with gaps: nine bytes may ask for 2 GB or for 100.
    """
    place, memos, code = 0, 0, None
    while code != ".":
        code = chr(data[place]) if place < len(data) else None
        if code not in pickletools.code2op:
            raise ValueError("cut off" if code is None else f"byte {place} is no opcode")
        opcode, place = pickletools.code2op[code], place + 1
        kind, begin = opcode.arg and opcode.arg.n, place
        if kind == pickletools.UP_TO_NEWLINE:
            for _ in range(1 + (opcode.arg.name == "stringnl_noescape_pair")):
                place = data.find(b"\n", place) + 1 or len(data) + 1
        elif kind in LENGTHS:
            length, = struct.unpack_from(LENGTHS[kind], data, place)
            place += struct.calcsize(LENGTHS[kind]) + max(0, length)
        elif kind is not None:
            place += kind
        if place > len(data):
            raise ValueError(f"byte {begin} tells of more bytes than the file has")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            number = int(data[begin:place]) if opcode.name == "PUT" else int.from_bytes(data[begin:place], "little")
            if number > memos + MOST_GAPS:
                raise ValueError(f"byte {begin} tells of more memos than the file has")
        memos += opcode.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")


class StoredArray:
    """Stands for a pickled numpy array or number and keeps its bytes: nothing of numpy's own unpickling is run."""

    def __init__(self, content=None, dtype=None):
        self.content, self.dtype = content, dtype

    def __setstate__(self, state):
        _, _, self.dtype, _, self.content = state  # version, shape, type, order, bytes

    def values(self):
        """-> list of int, bool or float. Raises ValueError for another type."""
        if not isinstance(self.dtype, StoredDtype) or self.dtype.name not in PLAIN:
            raise ValueError("not an array of numbers")
        return np.frombuffer(self.content, np.dtype(self.dtype.name).newbyteorder(self.dtype.order)).tolist()


PLAIN = {"b1", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"}


class StoredDtype:
    """Stands for numpy.dtype, of which the name and the order of bytes are kept."""

    def __init__(self, name, *ignored):
        self.name, self.order = as_text(name), "="

    def __setstate__(self, state):
        self.order = as_text(state[1])  # of version, order and five more


def as_text(name):
    """Python 2's str come as bytes."""
    return name.decode("ascii") if isinstance(name, bytes) else name


class StoredType:
    """Stands for numpy.ndarray, of which nothing is kept."""


class VerificationUnpickler(pickle.Unpickler):
    """Knows the names that bytes, numbers and arrays of them need, no others, and takes none from outside this file."""

    def __init__(self, data):
        super().__init__(io.BytesIO(data), encoding="bytes")  # Python 2's str are bytes
        self.left = len(data)  # bytes that may be copied: none is in the file for two of them
        self.known = {
            ("_codecs", "encode"): self.encode,
            ("numpy", "ndarray"): StoredType,
            ("numpy", "dtype"): StoredDtype,
            ("numpy.core.multiarray", "_reconstruct"): self.reconstruct,
            ("numpy.core.multiarray", "scalar"): self.scalar,
            ("numpy.core.numeric", "_frombuffer"): self.from_buffer,
            ("numpy._core.multiarray", "_reconstruct"): self.reconstruct,  # since numpy 2
            ("numpy._core.multiarray", "scalar"): self.scalar,
            ("numpy._core.numeric", "_frombuffer"): self.from_buffer,
        }

    def find_class(self, module, name):
        if (module, name) not in self.known:
            raise pickle.UnpicklingError(f"it asks for {module!r}.{name!r}, which pictures do not need")
        return self.known[module, name]

    def count(self, copy):
        self.left -= len(copy)
        if self.left < 0:
            raise pickle.UnpicklingError("it copies more bytes than it holds")
        return copy

    def encode(self, text, encoding):
        """How Python 3 writes bytes in protocols 0 to 2; the encoding is always latin1."""
        return self.count(text.encode("latin1"))

    def reconstruct(self, array_type, shape, letter):
        """How arrays begin in protocols 0 to 4; their content follows as their state."""
        return StoredArray()

    def scalar(self, dtype, content):
        """How numpy's numbers are written."""
        return StoredArray(content, dtype)

    def from_buffer(self, buffer, dtype, shape, order):
        """How arrays are written in protocol 5."""
        return StoredArray(self.count(bytes(buffer)), dtype)
