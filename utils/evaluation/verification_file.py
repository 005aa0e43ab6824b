"""insightface's verification files, such as lfw.bin, cfp_fp.bin and agedb_30.bin, read so that they can run nothing.

Such a file is the pickle of ([picture, ...], [genuine, ...]): pictures 2i and 2i+1, JPEG files, are pair i, and the
pairs are those of ten folds in order. A picture is bytes, of Python 2 or 3 (insightface, src/data/lfw2pack.py), or the
uint8 array that cv2.imencode returns (cfp2pack.py, agedb2pack.py).
"""
import io
import pickle
from pathlib import Path

import numpy as np

from utils.evaluation.lfw import Pairs
from utils.machine.errors import UserError

FOLDS = 10


class StoredPicture(io.BytesIO):
    """A picture inside another file; its name is what an error message calls it."""

    def __init__(self, content, name):
        super().__init__(content)
        self.name = name

    def __str__(self):
        return self.name


def read_verification_file(path):
    """-> Pairs over StoredPictures; equal pictures are listed once, and the name is the file's without its suffix.

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
    pictures = [StoredPicture(contents[number], f"{path}, picture {number}") for number in first_seen]
    return Pairs(pictures, places[0::2], places[1::2], np.array(genuine, bool), FOLDS, path.stem)


def load(path):
    """-> (list of bytes, list of bool). Raises UserError."""
    try:
        with open(path, "rb") as file:
            content = VerificationUnpickler(file, encoding="bytes").load()  # Python 2's str are bytes
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give --bin an insightface file such as lfw.bin") from None
    except Exception as error:  # bytes that are no pickle may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is no verification file ({reason}): download or pack it again") from None
    try:
        pictures, flags = content
        if not isinstance(pictures, list | tuple) or not isinstance(flags, list | tuple):
            raise TypeError
        pictures = [picture.content if isinstance(picture, StoredArray) else picture for picture in pictures]
        if not all(isinstance(picture, bytes) for picture in pictures) or not all(flag in (0, 1) for flag in flags):
            raise TypeError
    except (TypeError, ValueError):
        raise UserError(f"{path} is no verification file: expected (JPEG files, a true or false per pair)") from None
    return pictures, flags


class StoredArray:
    """Stands for a pickled numpy array and keeps its bytes: nothing of numpy's own unpickling is run."""

    def __init__(self, content=None):
        self.content = content

    def __setstate__(self, state):
        self.content = state[-1]  # of version, shape, type, order, bytes


class StoredType:
    """Stands for numpy.ndarray and numpy.dtype, of which nothing is kept."""

    def __init__(self, *ignored):
        pass

    def __setstate__(self, state):
        pass


def encode(text, encoding):
    """How Python 3 writes bytes in protocols 0 to 2; the encoding is always latin1."""
    return text.encode("latin1")


def reconstruct(array_type, shape, letter):
    """How arrays begin in protocols 0 to 4; their content follows as their state."""
    return StoredArray()


def from_buffer(buffer, dtype, shape, order):
    """How arrays are written in protocol 5."""
    return StoredArray(bytes(buffer))


class VerificationUnpickler(pickle.Unpickler):
    """Knows the names that bytes and uint8 arrays need, no others, and takes none of them from outside this file."""

    known = {
        ("_codecs", "encode"): encode,
        ("numpy", "ndarray"): StoredType,
        ("numpy", "dtype"): StoredType,
        ("numpy.core.multiarray", "_reconstruct"): reconstruct,
        ("numpy.core.numeric", "_frombuffer"): from_buffer,
        ("numpy._core.multiarray", "_reconstruct"): reconstruct,  # since numpy 2
        ("numpy._core.numeric", "_frombuffer"): from_buffer,
    }

    def find_class(self, module, name):
        if (module, name) not in self.known:
            raise pickle.UnpicklingError(f"it asks for {module!r}.{name!r}, which pictures do not need")
        return self.known[module, name]
