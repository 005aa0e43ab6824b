"""Look through a folder of one folder per identity: which images decode, what is left out and why, and duplicates."""
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np

from utils.common.device import available_cores
from utils.common.errors import UserError
from utils.common.files import hash_file, identity_name
from utils.faces.images import EXTENSIONS, extension, open_image


class Identity(NamedTuple):
    """What is in the folders of one identity."""
    name: str
    images: list     # sorted paths
    skipped: list    # [(path, reason)]
    hashes: list     # 64 bits of the SHA-256 of each image; empty if the images were not checked


def list_root(root):
    """Return ({name of an identity: its folders}, sorted by name; [(path, reason)] of everything else).

    Folders whose names differ in their Unicode form alone are of one identity.
    Raises UserError if root is no folder.
    """
    if not os.path.isdir(root):
        raise UserError(f"{root} is not a folder: make one folder per person in it, or give --datasets-path")
    identities, skipped = {}, []
    entries = (e for e in os.scandir(root) if e.name[0] != ".")
    for entry in sorted(entries, key=lambda entry: (identity_name(entry.name), entry.name)):
        if os.path.isdir(entry.path):  # unlike is_dir(), False for a link that cannot be followed
            identities.setdefault(identity_name(entry.name), []).append(entry.path)
        else:
            skipped.append((entry.path, "not the folder of a person"))
    return identities, skipped


def scan_identities(identities, check=True):
    """Yield the Identity of each item of list_root's dict, in its order.

    check: decode and hash every image, on all cores, and skip those that do not decode.
    """
    if not check:
        yield from (scan_identity(item, check=False) for item in identities.items())
        return
    with ProcessPoolExecutor(available_cores(), initializer=signal.signal,
                             initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:  # Ctrl-C is for the main process
        yield from pool.map(scan_identity, identities.items(), chunksize=1 + len(identities) // 10_000)


def scan_identity(item, check=True):
    """Return the Identity of (name, folders)."""
    name, folders = item
    found = Identity(name, [], [], [])
    for folder in folders:
        try:
            entries = sorted((e for e in os.scandir(folder) if e.name[0] != "."), key=lambda e: e.name)
        except OSError as error:
            found.skipped.append((folder, f"cannot be read ({error.strerror})"))
            continue
        for entry in entries:
            reason = why_no_image(entry)
            if check and not reason:
                try:
                    open_image(entry.path)
                    found.hashes.append(int(hash_file(entry.path)[:16], 16))
                except UserError as error:
                    reason = reason_of(error, entry.path)
            if reason:
                found.skipped.append((entry.path, reason))
            else:
                found.images.append(entry.path)
    if not found.images:
        found.skipped.append((folders[0], "a person with no image"))
    return found


def why_no_image(entry):
    """Return why an entry of a person's folder is no image by its name, or None if it is one."""
    if os.path.isdir(entry.path):
        return "a folder inside a person's folder; if it is a person's, give --datasets-path the folder around it"
    if extension(entry.name) not in EXTENSIONS:
        return "not an image by its extension; if it is one, convert it to JPEG or PNG"
    if entry.path != entry.path.encode("utf-8", "ignore").decode():
        return "a name that is not valid Unicode"


def reason_of(error, path):
    """Return the reason in a UserError about an image: its message without the path and the remedy."""
    return str(error).removeprefix(f"{path} ").rpartition(":")[0]


def describe_duplicates(hashes, labels, paths):
    """Yield a line on equal files of different identities, and one on those of the same identity.

    hashes: uint64 (N,). labels: (N,). paths: the N paths.
    """
    order = np.argsort(hashes, kind="stable")
    equal = hashes[order[1:]] == hashes[order[:-1]]
    first, second = order[:-1][equal], order[1:][equal]
    different = labels[first] != labels[second]
    if different.any():
        pair = np.flatnonzero(different)[0]
        yield (f"{different.sum()} images are also under another person, {paths[first[pair]]} and "
               f"{paths[second[pair]]} first: remove the wrong one of each two")
    if not different.all():
        yield f"{(~different).sum()} images are copies of another one of the same person"
