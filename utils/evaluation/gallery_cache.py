"""The embeddings of a gallery's pictures, kept in its folder: .embeddings.npz, and .embeddings.1.npz, ... for what came
later.

Each part is written whole or not at all and never changed, and zip's checksums tell a damaged one. A part counts where
its key is right, a row where path, size and time of change are still those of the picture. So parts may hold rows of no
use, or rows twice, as after a kill between two writes: all are then written anew as one, and nothing stays of pictures
that were removed.
"""
import itertools
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.common.errors import UserError
from utils.common.files import atomic_write

CACHE_NAME = ".embeddings.npz"
PARTS = 10  # further ones; where there would be more all are made one


class Cache(NamedTuple):
    paths: list                 # M, relative to the gallery
    stamps: np.ndarray          # int64 (M, 2): bytes, time of change in ns
    embeddings: np.ndarray      # float32 (M, D)
    own_tail: np.ndarray        # of the whole gallery when the last part was written: see gallery.py
    parts: int                  # files that may be added to; 0: write all anew


def part_path(folder, number):
    return Path(folder, CACHE_NAME if number == 0 else f".embeddings.{number}.npz")


def read_cache(folder, key, size):
    """-> Cache of rows of `size` numbers; an empty one where there is none, or none of use."""
    parts = []
    for number in itertools.count():
        path = part_path(folder, number)
        if not path.exists():
            break
        part = read_part(path, key, size)
        if part is None:
            break
        parts.append(part)
    if not parts:
        return Cache([], np.zeros((0, 2), np.int64), np.zeros((0, size), np.float32), np.zeros(0), 0)
    if len(parts) == 1:
        return Cache(*parts[0], 0 if path.exists() else 1)
    paths, stamps, embeddings, tails = zip(*parts)
    return Cache([*itertools.chain(*paths)], np.concatenate(stamps), np.concatenate(embeddings), tails[-1],
                 0 if path.exists() else len(parts))


def read_part(path, key, size):
    """-> (paths, stamps, embeddings, own_tail) of one file, None where it is of no use."""
    try:
        with np.load(path, allow_pickle=False) as part:
            if str(part["key"]) != key:
                return None
            paths = bytes(part["paths"]).decode("utf-8", "surrogateescape").split("\0")
            stamps, rows, tail = part["stamps"], part["embeddings"], part["own_tail"]
        usable = (rows.dtype == np.float32 and rows.shape == (len(paths), size) and np.isfinite(rows).all()
                  and stamps.dtype == np.int64 and stamps.shape == (len(paths), 2)
                  and tail.dtype == np.float64 and tail.shape in ((0,), (2,)) and np.isfinite(tail).all())
        return (paths, stamps, rows, tail) if usable else None
    except Exception:  # a damaged file may raise almost anything: it is made anew
        return None


def write_part(folder, number, key, paths, stamps, embeddings, own_tail):
    """Write the part of this number; 0 is all, and the other parts go.

    -> a line that says why it cannot be written, None where it is.
    """
    names = "\0".join(paths).encode("utf-8", "surrogateescape")
    try:
        with atomic_write(part_path(folder, number)) as temporary, open(temporary, "wb") as file:
            np.savez(file, key=key, paths=np.frombuffer(names, np.uint8), stamps=stamps, embeddings=embeddings,
                     own_tail=own_tail)
    except UserError as error:
        return f"{error}: the next query will embed the pictures again"
    if number == 0:
        remove_parts(folder)


def remove_parts(folder):
    """Remove the parts beyond the first, the last of them first, so that no gap hides one from read_cache()."""
    last = next(number for number in itertools.count(1) if not part_path(folder, number).exists()) - 1
    for number in range(last, 0, -1):
        with suppress(OSError):
            part_path(folder, number).unlink()
