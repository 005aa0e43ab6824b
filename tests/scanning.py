"""Folders of small images, and what a scan finds in them, for tests."""
import os
from types import SimpleNamespace

import numpy as np
from PIL import Image

from utils.data.scan import list_root, scan_identities


def draw(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return path


def make_identities(root, **counts):
    """Draw `count` images for each name. No two files are equal."""
    for identity, (name, count) in enumerate(counts.items()):
        for number in range(count):
            draw(root / name / f"{number}.png", 1000 * identity + number)
    return root


def scan(root, check=True):
    """Return identities {name: paths} and skipped {path within root: reason}."""
    identities, strays = list_root(root)
    found = list(scan_identities(identities, check))
    skipped = strays + [one for identity in found for one in identity.skipped]
    return SimpleNamespace(identities={identity.name: identity.images for identity in found if identity.images},
                           skipped={os.path.relpath(path, root): reason for path, reason in skipped})
