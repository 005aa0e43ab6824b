"""A folder of people's pictures, embedded once and remembered: who of them is nearest to a face?

    DIR/alice/1.jpg  DIR/alice/2.jpg  DIR/bob.jpg     a folder per person, or loose pictures named after them, or both

The embeddings are kept in the folder (.embeddings.npz). A picture is known by its path, size and time of change; what
else an embedding depends on (weights, preprocessing) is the key of the whole file.
"""
import itertools
import json
import os
from array import array
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.common.errors import UserError
from utils.common.files import atomic_write, is_folder
from utils.evaluation.embedding import InvalidEmbeddings
from utils.evaluation.thresholds import count_impostors, fit_tail
from utils.faces.face_crop import NoDetector
from utils.faces.images import EXTENSIONS, UNREAD_EXTENSIONS

NAME = attrgetter("name")
PART = 256            # pictures embedded at once; where one of them is bad its part is halved until that one is found
ENOUGH_PEOPLE = 20    # 190 pairs of people: the least that tell how near they come to each other
ASKED_PICTURES = 4000  # and the most, 8 million pairs
CACHE_NAME = ".embeddings.npz"
FURTHER_PARTS = 10  # further ones; where there would be more all are made one


class Gallery(NamedTuple):
    folder: Path
    paths: list                 # N pictures, relative to the folder, with "/" between its parts
    people: list                # P names
    person: np.ndarray          # int32 (N,): the place in `people` of whom a picture shows
    embeddings: np.ndarray      # float32 (N, D)
    embedded: int               # how many of them were not in the cache
    skipped: list               # one line for each picture, folder or kind of file that was left out
    note: str | None            # why the embeddings could not be kept, in one line
    own_tail: np.ndarray        # of fit_own_tail()


def open_gallery(folder, embed, settings, progress=None):
    """A folder -> Gallery. Only what is new or changed since the last time is embedded.

    embed: a list of paths -> embeddings (N, D); raises UserError for a picture it cannot embed.
    settings: a dict of everything else that an embedding depends on.
    progress: wraps the parts, called as progress(iterable, total=count), such as tqdm.
    Raises UserError where `folder` is none, and where no picture in it can be embedded.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: make one with a folder of pictures per person in it")
    paths, stamps, skipped = scan(folder)
    key = json.dumps(settings, sort_keys=True)
    size = embed([]).shape[1]
    cache = read_cache(folder, key, size)
    rows = rows_of(cache, paths, stamps)
    kept, usable = int((rows >= 0).sum()), rows >= 0
    unchanged = cache.parts and kept == len(cache.paths)
    if np.array_equal(rows, np.arange(len(cache.paths))):
        embeddings = cache.embeddings
    else:
        embeddings = np.empty((len(paths), size), np.float32)
        if kept:  # take(), not an index, which would make another array of this size
            np.take(cache.embeddings, rows, 0, embeddings, "clip")

    new = np.flatnonzero(rows < 0).tolist()
    parts = [new[start:start + PART] for start in range(0, len(new), PART)]
    for part in progress(parts, total=len(parts)) if progress and parts else parts:
        found, unusable = embed_usable(part, lambda places: embed([folder / paths[place] for place in places]))
        for place, embedding in found.items():
            embeddings[place], usable[place] = embedding, True
        skipped += unusable
    if not usable.any():
        why = f" ({len(skipped)} skipped, the first: {skipped[0]})" if skipped else ""
        raise UserError(f"{folder} holds no picture to compare with{why}: put a folder of pictures per person in it")
    if not usable.all():
        paths = [path for path, good in zip(paths, usable) if good]
        stamps, embeddings, rows = stamps[usable], embeddings[usable], rows[usable]

    people, person = people_of(paths)
    embedded, note = len(paths) - kept, None
    if unchanged and not embedded:
        own_tail = cache.own_tail
    else:
        own_tail = fit_own_tail(embeddings, person, len(people))
        append = unchanged and cache.parts <= FURTHER_PARTS and embedded < kept
        chosen = np.flatnonzero(rows < 0) if append else np.arange(len(paths))
        note = write_part(folder, cache.parts if append else 0, key, [paths[place] for place in chosen],
                          stamps[chosen], embeddings[chosen], own_tail)
    return Gallery(folder, paths, people, person, embeddings, embedded, skipped, note, own_tail)


def scan(folder):
    """-> (relative paths, int64 (N, 2) of [bytes, time of change in ns], a line for what was left out).

    Loose pictures come first, then those of each folder, both sorted.
    """
    paths, stamps, skipped, deep, others = [], array("q"), [], [], {}
    folders = [("", folder)]
    for prefix, path in folders:  # grows by the folders inside the first one
        try:
            entries = sorted(os.scandir(path), key=NAME)
        except OSError as error:
            skipped.append(f"{path} cannot be read ({error.strerror})")
            continue
        for entry in entries:
            name = entry.name
            if name[0] == ".":  # startswith() takes a tenth of the scan
                continue
            ending = name[name.rfind("."):].lower()
            if is_folder(entry):
                deep.append(entry.path) if prefix else folders.append((f"{name}/", entry.path))
            elif ending in EXTENSIONS:
                try:
                    stat = entry.stat()
                    paths.append(prefix + name)
                    stamps.extend((stat.st_size, stat.st_mtime_ns))
                except OSError as error:  # a link that leads nowhere
                    skipped.append(f"{entry.path} cannot be read ({error.strerror})")
            elif ending in UNREAD_EXTENSIONS:
                others.setdefault(ending, []).append(entry.path)
    skipped += [f"{len(left)} {ending} files, which are not read ({left[0]} is the first): save them as .jpg or .png"
                for ending, left in sorted(others.items())]
    if deep:
        skipped.append(f"{len(deep)} folders inside a person's folder ({deep[0]} is the first): people's folders must "
                       f"stand in {folder} itself")
    return paths, np.array(stamps, np.int64).reshape(-1, 2), skipped


def rows_of(cache, paths, stamps):
    """-> the row of each picture in the cache, int64 (N,), -1 where it is new or has changed."""
    if paths == cache.paths:
        rows = np.arange(len(paths))
    else:
        row_of = {path: row for row, path in enumerate(cache.paths)}
        rows = np.array([row_of.get(path, -1) for path in paths], np.int64)
    known = np.flatnonzero(rows >= 0)
    rows[known[(cache.stamps[rows[known]] != stamps[known]).any(1)]] = -1
    return rows


def people_of(paths):
    """-> (names, the place among them of the person of each path, int32): "alice/1.jpg" and "alice.jpg" are alice."""
    numbers = {}
    person = [numbers.setdefault(folder or os.path.splitext(file)[0], len(numbers))
              for folder, _, file in (path.rpartition("/") for path in paths)]
    return list(numbers), np.array(person, np.int32)


def embed_usable(sources, embed):
    """-> ({source: embedding} of the pictures that can be embedded, a line for each of the others)."""
    try:
        return dict(zip(sources, embed(sources))), []
    except (NoDetector, InvalidEmbeddings):  # not one of the pictures is to blame
        raise
    except UserError as error:
        if len(sources) == 1:
            return {}, [str(error)]
    middle = len(sources) // 2
    (first, bad), (second, also_bad) = embed_usable(sources[:middle], embed), embed_usable(sources[middle:], embed)
    return first | second, bad + also_bad


def fit_own_tail(embeddings, person, people):
    """How near the gallery's own people come to each other -> fit_tail(), float64 (2,); (0,) for too few people.

    Of a large gallery some of the pictures tell.
    """
    if people < ENOUGH_PEOPLE:
        return np.zeros(0)
    asked = np.unique(np.linspace(0, len(person) - 1, ASKED_PICTURES).astype(np.int64))
    counts, people = count_impostors(embeddings[asked], person[asked]), len(np.unique(person[asked]))
    return np.array(fit_tail(counts, people * (people - 1) // 2)) if people >= ENOUGH_PEOPLE else np.zeros(0)


def nearest_people(embedding, gallery, top):
    """An embedding (D,) -> the `top` nearest people, [(name, L2 distance, relative path of their nearest picture)]."""
    cosines = gallery.embeddings @ embedding
    of_person = np.full(len(gallery.people), -np.inf, np.float32)
    np.maximum.at(of_person, gallery.person, cosines)
    top = min(top, len(of_person))
    nearest = np.argpartition(-of_person, top - 1)[:top]
    rows = [max(np.flatnonzero(gallery.person == person), key=cosines.__getitem__) for person in nearest]
    # The product in float32 cannot tell distances below 5e-4 from 0; the difference can.
    distances = np.linalg.norm(gallery.embeddings[rows].astype(np.float64) - embedding, axis=1).tolist()
    found = [(gallery.people[person], distance, gallery.paths[row])
             for person, distance, row in zip(nearest, distances, rows)]
    return sorted(found, key=lambda candidate: candidate[1])


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
