"""Pictures that are of nobody in particular, for a student whose teacher needs no labels."""
import hashlib
import os
from collections import Counter

from utils.data.packed_paths import pack
from utils.data.scan import NESTED, list_person
from utils.faces.left_out import describe_left_out, ending
from utils.machine.errors import UserError


def read_unlabelled(folder):
    """-> (PackedPaths of all pictures below a folder, however deep; SHA-256 of where they lie in it; lines to print).

    Links to folders are followed. Raises UserError where there is no picture.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{folder} is not a folder: give --unlabelled the one that the pictures lie in")
    paths, left_out = list_below(folder)
    if not paths:
        raise UserError(f"{folder} holds no picture: give --unlabelled the folder that the pictures lie in")
    line = describe_left_out(Counter(ending(path) for path in left_out))
    names = "\n".join(os.path.relpath(path, folder) for path in paths)
    return pack(paths), hashlib.sha256(names.encode("utf-8")).hexdigest(), [line] if line else []


def list_below(folder):
    """-> (paths that are pictures by their names, paths of all other files), folder by folder.

    Hidden folders are left out. Raises UserError for a folder that cannot be read.
    """
    paths, left_out, waiting, seen = [], [], [folder], set()
    while waiting:
        folder = waiting.pop()
        if (place := os.path.realpath(folder)) in seen:  # a link to a folder above it
            continue
        seen.add(place)
        pictures, others = list_person(folder)
        paths += pictures
        for path, reason in reversed(others):
            if path == folder:
                raise UserError(f"{folder} {reason}: let it be read, or move it out of --unlabelled")
            if reason != NESTED:
                left_out.append(path)
            elif not os.path.basename(path).startswith("."):
                waiting.append(path)
    return paths, left_out


class Joined:
    """Two sequences of pictures, PackedPaths or Records, one after the other."""

    def __init__(self, first, second):
        self.first, self.second = first, second

    def __len__(self):
        return len(self.first) + len(self.second)

    def __getitem__(self, index):
        part, place = self.place_of(index)
        return part[place]

    def name(self, index):
        """How a message calls a picture."""
        part, place = self.place_of(index)
        return part.name(place)

    def place_of(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"{index} of {len(self)} pictures")
        count = len(self.first)
        return (self.first, index) if index < count else (self.second, index - count)

    def subset(self, indices):
        """int64 tensor (M,), ascending -> those pictures."""
        count = len(self.first)
        first, second = indices[indices < count], indices[indices >= count] - count
        return Joined(self.first.subset(first), self.second.subset(second))
