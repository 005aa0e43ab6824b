"""insightface's training sets: train.rec and train.idx, read without MXNet.

train.rec is MXNet's RecordIO. A record has one or more parts, each of: the magic number, a word with the kind of the
part in its upper 3 bits and the length in the others, the bytes, and zeros up to a multiple of 4. A payload that
contains the magic number at a multiple of 4 is split there, and the number is left out (dmlc-core,
include/dmlc/recordio.h). The payload begins with IRHeader: flag, label, id, id2, and then as many float32 labels as the
flag says, which replace the first label (MXNet, python/mxnet/recordio.py). insightface adds records without an image:
one for the file and one for each identity (src/data/face2rec2.py). train.idx has one `number<TAB>offset` line per
record.
"""
import hashlib
import struct
from pathlib import Path

import numpy as np
import torch

from utils.common.errors import UserError
from utils.faces.images import EncodedImage

MAGIC = 0xCED7230A
WHOLE, FIRST, MIDDLE, LAST = range(4)  # kinds of parts
HEADER_BYTES = 24  # IRHeader


class Records:
    """A sequence of the images in a .rec file, as EncodedImages. The offsets are tensors, which loader workers share.

    offsets, sizes: of the records in bytes, int64 tensors (N,).
    """

    def __init__(self, path, offsets, sizes):
        self.path, self.offsets, self.sizes = path, offsets, sizes

    def __len__(self):
        return len(self.offsets)

    def __getitem__(self, index):
        """Raises UserError if the record is damaged."""
        name = f"{self.path}, byte {int(self.offsets[index])}"
        try:
            with open(self.path, "rb") as file:  # opened each time: forked workers would share the file's position
                file.seek(int(self.offsets[index]))
                payload = join_parts(file.read(int(self.sizes[index])))
            flag, = struct.unpack_from("<I", payload)
        except (OSError, struct.error) as error:
            raise UserError(f"{name} cannot be read ({error}): download it again") from None
        return EncodedImage(payload[HEADER_BYTES + 4 * flag:], name)


def join_parts(record):
    """Return the payload of the bytes of one record."""
    parts, begin, kind = [], 0, FIRST
    while kind not in (WHOLE, LAST):
        _, kind_and_length = struct.unpack_from("<II", record, begin)
        kind, length = divmod(kind_and_length, 1 << 29)
        parts.append(record[begin + 8:begin + 8 + length])
        begin += 8 + length + -length % 4
    return struct.pack("<I", MAGIC).join(parts)


def read_records(folder):
    """Read <folder>/train.rec, by its index, into (Records, int32 tensor of labels 0..C-1, SHA-256 of the set).

    Only the heads of the records are read. Raises UserError if the files do not fit each other or hold no image.
    """
    path, index_path = Path(folder, "train.rec"), Path(folder, "train.idx")
    try:
        size = path.stat().st_size
        words = np.memmap(path, "<u4", "r", shape=size // 4)
        _, offsets = np.loadtxt(index_path, np.int64, delimiter="\t", ndmin=2).T
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} does not hold insightface's train.rec and train.idx, one `number<TAB>offset` line "
                        f"per record ({error}): download both again") from None
    offsets = np.sort(offsets)
    sizes = np.diff(offsets, append=size)
    labels, empty = read_heads(words, offsets, sizes, path)
    if empty.all():
        raise UserError(f"{path} holds no image: it is no training set of faces")
    labels = torch.from_numpy(np.unique(labels[~empty], return_inverse=True)[1].astype(np.int32))
    offsets, sizes = torch.from_numpy(offsets[~empty]), torch.from_numpy(sizes[~empty])
    sha256 = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in (offsets, sizes, labels))).hexdigest()
    return Records(str(path), offsets, sizes), labels, sha256


def read_heads(words, offsets, sizes, path):
    """Return the labels of the records at these offsets, float32, and whether each has no image.

    words: the file as uint32. Raises UserError, which names the byte, if the index does not fit the file.
    """
    magic, kind_and_length, flags, label, first_of_labels = (
        np.asarray(words[(offsets // 4 + word).clip(0, len(words) - 1)]) for word in (0, 1, 2, 3, 8))
    kinds, lengths = np.divmod(kind_and_length.astype(np.int64), 1 << 29)
    ends = 8 + lengths + -lengths % 4
    fits = np.where(kinds == WHOLE, ends == sizes, (kinds == FIRST) & (ends < sizes))
    damaged = offsets[(magic != MAGIC) | ~fits | (lengths < HEADER_BYTES)]
    if len(damaged):
        raise UserError(f"{path}, byte {damaged[0]}: the record is not as long as train.idx says, one of the two files "
                        "is incomplete or of another set: download both again")
    labels = np.where(flags > 0, first_of_labels, label).view("<f4")
    return labels, (kinds == WHOLE) & (lengths <= HEADER_BYTES + 4 * flags.astype(np.int64))
