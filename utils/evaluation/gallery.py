"""Galleries: images of known people, embedded once, and the nearest people to a face.

    DIR/alice/1.jpg  DIR/alice/2.jpg  DIR/bob.jpg     a folder per person, or loose images named after them, or both

The embeddings are kept in DIR/.embeddings.npz, which is rewritten if anything changed. An image, also one without a
face, is embedded again only if its size, modification time or ctime changed. (On Windows ctime is the time of
creation.) The weights and the settings that an embedding depends on are the key of the file.
"""
import json
import os
from itertools import compress
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.common.errors import UserError
from utils.common.files import atomic_write, identity_name
from utils.evaluation.thresholds import count_impostors, fit_tail
from utils.faces.images import EXTENSIONS, describe_unread, extension

CACHE_NAME = ".embeddings.npz"
MIN_IDENTITIES = 20      # 190 pairs of identities; fewer do not show how similar they are
MAX_TAIL_IMAGES = 4000   # 8 million pairs


class Gallery(NamedTuple):
    folder: Path
    paths: list             # N images, relative to the folder, with "/" between the parts
    names: list             # P identities
    identity: np.ndarray    # int32 (N,): the index in `names` of each image
    embeddings: np.ndarray  # float32 (N, D)
    remarks: list           # N tuples, most of them empty: a line that names the image and what the detector noticed
    uncertain: np.ndarray   # bool (N,): the face is too small, or of a low detector score
    tail: np.ndarray        # of fit_gallery_tail()
    embedded: int           # number of images that were not in the cache
    skipped: list           # lines on images, folders and kinds of file that were left out, and on a cache not written


class Cache(NamedTuple):
    """The content of .embeddings.npz. Images that were left out have a row of NaN, and a remark that says why."""
    stamps: list            # "path|bytes|time of modification|ctime" of each image
    remarks: list
    embeddings: np.ndarray
    uncertain: np.ndarray
    tail: np.ndarray


def open_gallery(folder, embed, settings):
    """Return the Gallery of a folder. Only images that are new or changed since the last time are embedded.

    embed: called as embed(paths), returns embeddings (N, D), remarks and uncertain flags (N). An image that
    cannot be embedded has a row of NaN, and its remark, which begins with its path, says why.
    settings: a dict of everything else that an embedding depends on.
    Raises UserError if `folder` is not a folder, and if no image in it can be embedded.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: make one with a folder of images per person in it")
    paths, stamps, skipped = list_images(folder)
    cache_path, key, not_kept = folder / CACHE_NAME, json.dumps(settings, sort_keys=True), []
    cache = read_cache(cache_path, key)
    row_of = {stamp: row for row, stamp in enumerate(cache.stamps)}
    rows = np.array([row_of.get(stamp, -1) for stamp in stamps], np.int64)  # in the cache; -1: new or changed
    if stamps != cache.stamps or not paths:
        cache = update_cache(cache, folder, paths, stamps, rows, embed)
        try:
            write_cache(cache_path, key, cache)
        except (UserError, OSError) as error:
            not_kept = [f"{error}: the next query will embed the images again"]

    usable = np.isfinite(cache.embeddings[:, 0])
    skipped += [f"{folder / paths[row]}{cache.remarks[row]}" for row in np.flatnonzero(~usable)]
    if not usable.any():
        reasons = f" ({len(skipped)} skipped, the first: {skipped[0]})" if skipped else ""
        raise UserError(f"{folder} holds no image to compare with{reasons}: put a folder of images per person in it")
    paths = [*compress(paths, usable)]
    remarks = [(f"{folder / path}: {remark}",) if remark else ()
               for path, remark in zip(paths, compress(cache.remarks, usable))]
    return Gallery(folder, paths, *list_identities(paths), cache.embeddings[usable], remarks, cache.uncertain[usable],
                   cache.tail, int(((rows < 0) & usable).sum()), skipped + not_kept)


def list_images(folder):
    """Return relative paths, their stamps as in Cache, and a line for each thing that was left out.

    Loose images come first, then those of each folder, both sorted.
    """
    paths, stamps, skipped, nested, unread = [], [], [], [], []
    folders = [("", folder)]
    for prefix, path in folders:  # grows by the folders inside the first one
        try:
            entries = sorted(os.scandir(path), key=attrgetter("name"))
        except OSError as error:
            if not prefix or not isinstance(error, PermissionError):  # else the cache would lose its images
                raise UserError(f"{path} cannot be read ({error.strerror}): try again") from None
            skipped.append(f"{path} cannot be read ({error.strerror})")
            continue
        for entry in entries:
            name = entry.name
            if name[0] == ".":
                continue
            try:
                if entry.is_dir():
                    if prefix:
                        nested.append(entry.path)
                    else:
                        folders.append((f"{name}/", entry.path))
                elif extension(name) not in EXTENSIONS:
                    unread.append(name)
                else:
                    stat = entry.stat()
                    paths.append(prefix + name)
                    stamps.append(f"{paths[-1]}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}")
            except OSError as error:  # such as a link that leads nowhere
                skipped.append(f"{entry.path} cannot be read ({error.strerror})")
    if line := describe_unread(unread):
        skipped.append(line)
    if nested:
        skipped.append(f"{len(nested)} folders inside a person's folder ({nested[0]} is the first): people's folders "
                       f"must be in {folder} itself")
    return paths, stamps, skipped


def update_cache(cache, folder, paths, stamps, rows, embed):
    """Return the Cache of these images. rows: the row of each in the old one, or -1 for an image to embed."""
    new = np.flatnonzero(rows < 0)
    images = [folder / paths[index] for index in new]
    embeddings, remarks, uncertain = embed(images)
    # Without the path, because the folder may be moved.
    remarks = cache.remarks + [remark.removeprefix(str(path)) for path, remark in zip(images, remarks)]
    embeddings = np.concatenate([cache.embeddings.reshape(-1, embeddings.shape[1]), embeddings])
    order = rows.copy()
    order[new] = len(cache.stamps) + np.arange(len(new))
    embeddings, uncertain = embeddings[order], np.concatenate([cache.uncertain, np.array(uncertain, bool)])[order]
    usable = np.isfinite(embeddings[:, 0])
    tail = fit_gallery_tail(embeddings[usable], list_identities(compress(paths, usable))[1])
    return Cache(stamps, [remarks[row] for row in order], embeddings, uncertain, tail)


def read_cache(path, key):
    """Return the Cache in a file, an empty one if there is none for this key."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found, stamps, remarks = json.loads(bytes(file["texts"]))
            cache = Cache(stamps, remarks, *(file[name] for name in Cache._fields[2:]))
        if found == key:
            return cache
    except Exception:  # a damaged file may raise almost anything, and is written again
        pass
    return Cache([], [], np.zeros((0, 1), np.float32), np.zeros(0, bool), np.zeros(0))


def write_cache(path, key, cache):
    """Write the Cache, or remove the file of an empty one. Raises UserError if it cannot be written."""
    if not cache.stamps:
        path.unlink(missing_ok=True)
        return
    texts = json.dumps([key, cache.stamps, cache.remarks]).encode()
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, texts=np.frombuffer(texts, np.uint8), **dict(zip(Cache._fields[2:], cache[2:])))


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
    sample = slice(None, None, 1 + len(identity) // MAX_TAIL_IMAGES)
    number = len(np.unique(identity[sample]))
    if number < MIN_IDENTITIES:
        return np.zeros(0)
    return np.array(fit_tail(count_impostors(embeddings[sample], identity[sample]), number * (number - 1) // 2))


def nearest_identities(embedding, gallery, top):
    """Return the `top` identities nearest to an embedding (D,): [(name, distance, index of the nearest image)]."""
    cosines = gallery.embeddings @ embedding
    best = np.full(len(gallery.names), -np.inf, np.float32)
    np.maximum.at(best, gallery.identity, cosines)
    nearest = np.argsort(-best)[:top]
    rows = [max(np.flatnonzero(gallery.identity == number), key=cosines.__getitem__) for number in nearest]
    # The float32 product does not resolve distances below 5e-4; the difference does.
    distances = np.linalg.norm(gallery.embeddings[rows].astype(np.float64) - embedding, axis=1).tolist()
    found = [(gallery.names[number], distance, int(row)) for number, distance, row in zip(nearest, distances, rows)]
    return sorted(found, key=lambda candidate: candidate[1])
