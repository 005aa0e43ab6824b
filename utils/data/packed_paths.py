"""Millions of paths in three tensors: a list of str would be copied into every process that decodes pictures.

Python counts the references of each str in the page that holds it, so a forked process that only reads a list of them
comes to own it: 590 MB at 5 million. A tensor it never touches stays shared. Where processes are spawned, torch moves
a tensor into shared memory the first time that it is sent.
"""
import os
from pathlib import PurePosixPath, PureWindowsPath

import numpy as np
import torch


class PackedPaths:
    """A sequence of paths: uint8 text (UTF-8), and where in it each begins and how long it is.

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
