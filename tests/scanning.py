"""Folders of small pictures, and what a scan of them finds, for the tests of annotations."""
import os
from types import SimpleNamespace

import numpy as np
from PIL import Image

from utils.data.scan import Tally, list_root, scan_people


def draw(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return path


def make_people(root, **pictures):
    for name, count in pictures.items():
        for number in range(count):
            draw(root / name / f"{number}.png", number)
    return root


class Bar:
    """Stands for tqdm."""

    def __init__(self, total):
        self.total, self.n = total, 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if error == (None, None, None):
            assert self.n == self.total

    def update(self, count):
        assert count > 0
        self.n += count

    def set_postfix_str(self, text, refresh):
        pass


def scan(root, check=True, progress=Bar):
    """-> people {name: pictures}, skipped and damaged [(path, reason)], hints [line]."""
    names, strays = list_root(root)
    tally = Tally(root, strays)
    people = list(scan_people(root, names, progress, check))
    for person in people:
        tally.add(person)
    return SimpleNamespace(people={person.name: person.pictures for person in people if person.pictures},
                           skipped=strays + [one for person in people for one in person.skipped],
                           damaged=[one for person in people for one in person.damaged], hints=list(tally.hints()))


def reasons(scanned, root):
    return {os.path.relpath(path, root): reason for path, reason in scanned.skipped}
