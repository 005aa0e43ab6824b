"""A folder of images of known people, embedded once: who of them is nearest to a face?

    DIR/alice/1.jpg  DIR/alice/2.jpg  DIR/bob.jpg     a folder per person, or loose images named after them, or both

The embeddings are kept in DIR/.embeddings.npz, which is rewritten if anything changed. An image is embedded again if
its size, time of modification or ctime changed, and an image without a face is tried again only then. (On Windows ctime
is the time of creation.) What else an embedding depends on, such as the weights, is the key of the file.
"""
import json
import os
from array import array
from itertools import compress
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.common.errors import UserError
from utils.common.files import atomic_write, identity_name
from utils.evaluation.thresholds import count_impostors, fit_tail
from utils.faces.images import EXTENSIONS, describe_unread

CACHE_NAME = ".embeddings.npz"
MIN_IDENTITIES = 20      # 190 pairs of identities, the fewest that show how alike they are
MAX_TAIL_IMAGES = 4000   # 8 million pairs


class Gallery(NamedTuple):
    folder: Path
    paths: list             # N images, relative to the folder, with "/" between the parts
    names: list             # P identities
    identity: np.ndarray    # int32 (N,): the index in `names` of each image
    embeddings: np.ndarray  # float32 (N, D)
    remarks: list           # N lines on what the detector noticed, "" for most images
    uncertain: np.ndarray   # bool (N,): the face is too small, or hardly a face to the detector
    tail: np.ndarray        # of fit_gallery_tail()
    embedded: int           # how many of them were not in the cache
    skipped: list           # one line for each image, folder or kind of file that was left out
    note: str | None        # why the embeddings could not be kept, in one line

    def remarks_on(self, row):
        """Return a tuple of the remarks on an image, which name it."""
        return (f"{self.folder / self.paths[row]}: {self.remarks[row]}",) if self.remarks[row] else ()


class Cache(NamedTuple):
    """The content of .embeddings.npz. Images that were left out have a row of NaN, and a remark that says why."""
    paths: list
    remarks: list
    stamps: np.ndarray      # int64 (N, 3): bytes, time of modification and ctime in ns
    embeddings: np.ndarray
    uncertain: np.ndarray
    tail: np.ndarray

    def select(self, chosen):
        """Return a Cache of the images that a bool array (M,) chooses."""
        return Cache([*compress(self.paths, chosen)], [*compress(self.remarks, chosen)], self.stamps[chosen],
                     self.embeddings[chosen], self.uncertain[chosen], self.tail)


def open_gallery(folder, embed, settings, progress=None):
    """Return the Gallery of a folder. Only images that are new or changed since the last time are embedded.

    embed: called as embed(paths, progress), returns embeddings (N, D), remarks and uncertain flags (N). An image that
    cannot be embedded has a row of NaN, and its remark, which begins with its path, says why.
    settings: a dict of everything else that an embedding depends on.
    Raises UserError if `folder` is not a folder, and if no image in it can be embedded.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: make one with a folder of images per person in it")
    paths, stamps, skipped = list_images(folder)
    cache_path, key, note = folder / CACHE_NAME, json.dumps(settings, sort_keys=True), None
    cache = read_cache(cache_path, key)
    rows = find_rows(cache, paths, stamps)
    new = rows < 0
    if new.any() or len(paths) != len(cache.paths) or not paths:
        cache = update_cache(cache, folder, paths, stamps, rows, embed, progress)
        note = write_cache(cache_path, key, cache)

    usable = np.isfinite(cache.embeddings[:, 0])
    skipped += [f"{folder / cache.paths[row]}{cache.remarks[row]}" for row in np.flatnonzero(~usable)]
    if not usable.any():
        reasons = f" ({len(skipped)} skipped, the first: {skipped[0]})" if skipped else ""
        raise UserError(f"{folder} holds no image to compare with{reasons}: put a folder of images per person in it")
    cache = cache.select(usable)
    return Gallery(folder, cache.paths, *list_identities(cache.paths), cache.embeddings, cache.remarks,
                   cache.uncertain, cache.tail, int((new & usable).sum()), skipped, note)


def list_images(folder):
    """Return relative paths, their stamps as in Cache, and a line for each thing that was left out.

    Loose images come first, then those of each folder, both sorted.
    """
    paths, stamps, skipped, nested, unread = [], array("q"), [], [], []
    folders = [("", folder)]
    for prefix, path in folders:  # grows by the folders inside the first one
        for entry in sorted(os.scandir(path), key=attrgetter("name")):
            name = entry.name
            extension = name[name.rfind("."):].lower()
            if name[0] == ".":
                continue
            if entry.is_dir():
                nested.append(entry.path) if prefix else folders.append((f"{name}/", entry.path))
            elif extension in EXTENSIONS:
                try:
                    stat = entry.stat()
                except OSError as error:  # a link that leads nowhere
                    skipped.append(f"{entry.path} cannot be read ({error.strerror})")
                    continue
                paths.append(prefix + name)
                stamps.extend((stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
            else:
                unread.append(name)
    if line := describe_unread(unread):
        skipped.append(line)
    if nested:
        skipped.append(f"{len(nested)} folders inside a person's folder ({nested[0]} is the first): people's folders "
                       f"must be in {folder} itself")
    return paths, np.array(stamps, np.int64).reshape(-1, 3), skipped


def find_rows(cache, paths, stamps):
    """Return the row of each image in the cache, int64 (N,), or -1 if it is new or has changed."""
    row_of = {path: row for row, path in enumerate(cache.paths)}
    rows = np.array([row_of.get(path, -1) for path in paths], np.int64)
    known = np.flatnonzero(rows >= 0)
    rows[known[(cache.stamps[rows[known]] != stamps[known]).any(1)]] = -1
    return rows


def update_cache(cache, folder, paths, stamps, rows, embed, progress):
    """Return the Cache of these images, with the rows of the old one that are still right (find_rows)."""
    new = np.flatnonzero(rows < 0)
    embeddings, remarks, uncertain = embed([folder / paths[index] for index in new], progress)
    remarks = [remark.removeprefix(str(folder / paths[index])) for index, remark in zip(new, remarks)]  # it may move
    remarks = [*cache.remarks, *remarks]
    embeddings = np.concatenate([cache.embeddings.reshape(-1, embeddings.shape[1]), embeddings])
    order = rows.copy()
    order[new] = len(cache.paths) + np.arange(len(new))
    embeddings, uncertain = embeddings[order], np.concatenate([cache.uncertain, np.array(uncertain, bool)])[order]
    usable = np.isfinite(embeddings[:, 0])
    tail = fit_gallery_tail(embeddings[usable], list_identities(compress(paths, usable))[1])
    return Cache(paths, [remarks[row] for row in order], stamps, embeddings, uncertain, tail)


def read_cache(path, key):
    """Return the Cache in a file, an empty one if there is none for this key."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found, paths, remarks = json.loads(bytes(file["texts"]))
            cache = Cache(paths, remarks, *(file[name] for name in Cache._fields[2:]))
        if found == key:
            return cache
    except Exception:  # a damaged file may raise almost anything, and is written again
        pass
    return Cache([], [], np.zeros((0, 3), np.int64), np.zeros((0, 1), np.float32), np.zeros(0, bool), np.zeros(0))


def write_cache(path, key, cache):
    """Write the Cache, or remove the file of an empty one. Return why it cannot be written, in one line, or None."""
    texts = json.dumps([key, cache.paths, cache.remarks]).encode()
    try:
        if not cache.paths:
            path.unlink(missing_ok=True)
            return None
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, texts=np.frombuffer(texts, np.uint8), **dict(zip(Cache._fields[2:], cache[2:])))
    except (UserError, OSError) as error:
        return f"{error}: the next query will embed the images again"


def list_identities(paths):
    """Return the names and the index among them of each path, int32 (N,): "alice/1.jpg" and "alice.jpg" are alice."""
    numbers = {}
    identity = [numbers.setdefault(identity_name(folder or os.path.splitext(file)[0]), len(numbers))
                for folder, _, file in (path.rpartition("/") for path in paths)]
    return list(numbers), np.array(identity, np.int32)


def fit_gallery_tail(embeddings, identity):
    """Return fit_tail() of the pairs of two identities, float64 (2,), or (0,) for too few identities.

    A sample of the images is enough in a large gallery.
    """
    if len(np.unique(identity)) < MIN_IDENTITIES:
        return np.zeros(0)
    sample = np.unique(np.linspace(0, len(identity) - 1, MAX_TAIL_IMAGES).astype(np.int64))
    number = len(np.unique(identity[sample]))
    return np.array(fit_tail(count_impostors(embeddings[sample], identity[sample]), number * (number - 1) // 2))


def nearest_identities(embedding, gallery, top):
    """Return the `top` identities nearest to an embedding (D,): [(name, distance, index of the nearest image)]."""
    cosines = gallery.embeddings @ embedding
    best = np.full(len(gallery.names), -np.inf, np.float32)
    np.maximum.at(best, gallery.identity, cosines)
    top = min(top, len(best))
    nearest = np.argpartition(-best, top - 1)[:top]
    rows = [max(np.flatnonzero(gallery.identity == number), key=cosines.__getitem__) for number in nearest]
    # The float32 product does not resolve distances below 5e-4; the difference does.
    distances = np.linalg.norm(gallery.embeddings[rows].astype(np.float64) - embedding, axis=1).tolist()
    found = [(gallery.names[number], distance, int(row)) for number, distance, row in zip(nearest, distances, rows)]
    return sorted(found, key=lambda candidate: candidate[1])
