"""Pictures that are of nobody in particular, for a student whose teacher needs no labels."""
import hashlib
import os
from collections import Counter

from utils.common.errors import UserError
from utils.data.packed_paths import pack
from utils.data.scan import NESTED, list_folder, unwritable
from utils.faces.images import describe_unread, extension


def read_unlabelled(root):
    """-> (PackedPaths of all pictures below a folder, however deep; SHA-256 of where they lie in it; lines to print).

    Links to folders are followed, hidden folders left out. Raises UserError where there is no picture, and for a folder
    that cannot be read.
    """
    if not os.path.isdir(root):
        raise UserError(f"{root} is not a folder: give --unlabelled the one that the pictures lie in")
    if unwritable(str(root)):
        raise UserError(f"{str(root)!a} has {unwritable(str(root))}: give the folder another")
    paths, left_out = list_below(root)
    if not paths:
        raise UserError(f"{root} holds no picture: give --unlabelled the folder that the pictures lie in")
    names = "\n".join(os.path.relpath(path, root) for path in paths)
    return pack(paths), hashlib.sha256(names.encode("utf-8")).hexdigest(), [*describe(left_out)]


def list_below(root):
    """-> (paths that are pictures by their names, [(path, reason)] of what else is there), folder by folder."""
    paths, left_out, waiting, seen = [], [], [root], set()
    while waiting:
        folder = waiting.pop()
        if (place := os.path.realpath(folder)) in seen:  # a link to a folder above it
            continue
        seen.add(place)
        pictures, others = list_folder(folder)
        paths += pictures
        for path, reason in reversed(others):
            name = os.path.basename(path)
            if path == folder:
                raise UserError(f"{folder} {reason}: let it be read, or move it out of --unlabelled")
            if reason != NESTED or unwritable(name):
                left_out.append((path, unwritable(name) or reason))
            elif not name.startswith("."):
                waiting.append(path)
    return paths, left_out


def describe(left_out):
    """-> lines on what was left out and looks like pictures, or is a folder of them."""
    if line := describe_unread(Counter(extension(path) for path, _ in left_out)):
        yield line
    badly_named = [(path, reason) for path, reason in left_out if unwritable(os.path.basename(path))]
    if badly_named:
        path, reason = badly_named[0]
        yield f"left out: {len(badly_named)} files and folders that need other names, {path!a} has {reason}"


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
