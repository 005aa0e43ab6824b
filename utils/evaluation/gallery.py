"""A folder of people's pictures, embedded once and remembered: who of them is nearest to a face?

    DIR/alice/1.jpg  DIR/alice/2.jpg  DIR/bob.jpg     a folder per person, or loose pictures named after them, or both

The embeddings are kept in DIR/.embeddings.npz. A picture is known by its path, size and time of change; what else an
embedding depends on (weights, preprocessing) is the key of the whole file.
"""
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.faces.face_crop import NoDetector
from utils.faces.images import EXTENSIONS
from utils.machine.errors import UserError
from utils.machine.files import atomic_write

CACHE_NAME = ".embeddings.npz"
PART = 256  # pictures embedded at once; where one of them is bad its part is halved until that one is found


class Gallery(NamedTuple):
    folder: Path
    paths: list             # N pictures, relative to the folder, with "/" between its parts; sorted
    people: list            # N names
    embeddings: np.ndarray  # float32 (N, D)
    embedded: int           # how many of them were not in the cache
    skipped: list           # one line for each picture or folder that was left out
    note: str | None        # why the embeddings could not be kept, in one line


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
    stamps, skipped = scan(folder)
    cache, key = folder / CACHE_NAME, json.dumps(settings, sort_keys=True)
    known = read_cache(cache, key, embed([]).shape[1])
    embeddings = {path: known[path][1] for path, stamp in stamps.items() if path in known and known[path][0] == stamp}
    kept = len(embeddings)
    new = [path for path in stamps if path not in embeddings]
    parts = [new[start:start + PART] for start in range(0, len(new), PART)]
    for part in progress(parts, total=len(parts)) if progress and parts else parts:
        found, unusable = embed_usable(part, lambda paths: embed([folder / path for path in paths]))
        embeddings |= found
        skipped += unusable
    if not embeddings:
        why = f" ({len(skipped)} skipped, the first: {skipped[0]})" if skipped else ""
        raise UserError(f"{folder} holds no picture to compare with{why}: put a folder of pictures per person in it")
    paths = sorted(embeddings)
    rows, note = np.stack([embeddings[path] for path in paths]), None
    if len(paths) > kept or len(known) > kept:
        note = write_cache(cache, key, paths, [stamps[path] for path in paths], rows)
    return Gallery(folder, paths, [person_of(path) for path in paths], rows, len(paths) - kept, skipped, note)


def scan(folder):
    """-> ({relative path: [size in bytes, time of change in ns]}, a line for each thing that cannot be read)."""
    stamps, skipped, folders = {}, [], [("", folder)]
    for prefix, path in folders:  # grows by the folders inside the first one
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            skipped.append(f"{path} cannot be read ({error.strerror})")
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders += [] if prefix else [(f"{entry.name}/", entry.path)]
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                try:
                    stat = entry.stat()
                    stamps[prefix + entry.name] = [stat.st_size, stat.st_mtime_ns]
                except OSError as error:  # a link that leads nowhere
                    skipped.append(f"{entry.path} cannot be read ({error.strerror})")
    return stamps, skipped


def person_of(path):
    """"alice/1.jpg" and "alice.jpg" -> "alice"."""
    folder, _, file = path.rpartition("/")
    return folder or os.path.splitext(file)[0]


def embed_usable(paths, embed):
    """-> ({path: embedding} of the pictures that can be embedded, a line for each of the others)."""
    try:
        return dict(zip(paths, embed(paths))), []
    except NoDetector:  # none of the photographs can be embedded, and none of them is to blame
        raise
    except UserError as error:
        if len(paths) == 1:
            return {}, [str(error)]
    middle = len(paths) // 2
    (first, bad), (second, also_bad) = embed_usable(paths[:middle], embed), embed_usable(paths[middle:], embed)
    return first | second, bad + also_bad


def read_cache(path, key, size):
    """-> {relative path: ([bytes, time of change in ns], embedding (size,))}; {} where the file is of no use."""
    try:
        with np.load(path, allow_pickle=False) as cache:
            if str(cache["key"]) != key:
                return {}
            paths = bytes(cache["paths"]).decode("utf-8", "surrogateescape").split("\0")
            stamps, rows = cache["stamps"], cache["embeddings"]
        if rows.dtype != np.float32 or rows.shape != (len(paths), size) or not np.isfinite(rows).all():
            return {}
        return {path: (stamp, row) for path, stamp, row in zip(paths, stamps.tolist(), rows, strict=True)}
    except Exception:  # no file, or a damaged one, which may raise almost anything: it is made anew
        return {}


def write_cache(path, key, paths, stamps, embeddings):
    """-> a line that says why it cannot be written, None where it is."""
    names = "\0".join(paths).encode("utf-8", "surrogateescape")
    try:
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, key=key, paths=np.frombuffer(names, np.uint8), stamps=np.array(stamps, np.int64),
                     embeddings=embeddings)
    except UserError as error:
        return f"{error}: the next query will embed the pictures again"


def nearest_people(embedding, gallery, top):
    """An embedding (D,) -> the `top` nearest people, [(name, L2 distance, relative path of their nearest picture)]."""
    order = np.argsort(-(gallery.embeddings @ embedding), kind="stable")
    nearest = {}
    for row in order.tolist():
        nearest.setdefault(gallery.people[row], row)
        if len(nearest) == top:
            break
    # The product in float32 cannot tell distances below 5e-4 from 0; the difference can.
    differences = gallery.embeddings[list(nearest.values())].astype(np.float64) - embedding
    distances = np.linalg.norm(differences, axis=1).tolist()
    return sorted(((name, distance, gallery.paths[row]) for (name, row), distance in zip(nearest.items(), distances)),
                  key=lambda found: found[1])
