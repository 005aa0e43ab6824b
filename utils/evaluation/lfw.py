"""Labeled Faces in the Wild: the list of pairs, and a network's figures on them."""
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.common import distributed
from utils.common.errors import UserError
from utils.common.files import locate, read_lines
from utils.evaluation.embedding import UselessEmbeddings, embed
from utils.evaluation.metrics import verification
from utils.faces.alignment import align
from utils.faces.detector import main_face
from utils.faces.images import open_image

# Where the landmarks are in a 250x250 picture of LFW: the mean over those of folds 1 to 3, as the detector sees them.
LANDMARKS = np.array([(104.5, 112.2), (145.9, 111.6), (125.4, 137.3), (108.4, 157.4), (143.4, 156.9)])

UNALIGNED = ("holds the un-aligned 250x250 pictures: expect about 71% where the same network has 98.5% on pictures "
             "aligned to the 112x112 template")


class Pairs(NamedTuple):
    paths: list          # every distinct picture, once: anything open_image takes
    first: np.ndarray    # (N,) indices into paths
    second: np.ndarray
    genuine: np.ndarray  # (N,) bool
    folds: int
    name: str = "LFW"    # of the benchmark


def read_pairs(pairs_path, folder):
    """The official list (first line: folds, genuine pairs per fold) and the folder of pictures -> Pairs.

    A line is `name n m` for a genuine pair and `name n name m` for an impostor pair; picture n of a person
    is <folder>/<name>/<name>_000n.jpg. Where tabs divide it, names may hold spaces. The repository's own list is found
    from any folder.
    Raises UserError for a malformed line, and where pictures are missing.
    """
    pairs_path = locate(pairs_path)
    lines = [split_line(line) for line in read_lines(pairs_path, "it comes with the repository, give --lfw-pairs")]
    try:
        folds, per_fold = map(int, lines[0])
        if folds < 2 or per_fold < 1:
            raise ValueError
    except (ValueError, IndexError):
        raise UserError(f"{pairs_path}, line 1: expected two or more folds and their pairs, such as `10 300`") from None
    numbers, first, second, genuine = {}, [], [], []  # numbers: path -> its place in Pairs.paths
    for number, fields in enumerate(lines[1:], 2):
        if not fields:
            continue
        if len(fields) == 3:
            fields = [fields[0], fields[1], fields[0], fields[2]]
            genuine.append(True)
        else:
            genuine.append(False)
        if len(fields) != 4 or not fields[1].isdecimal() or not fields[3].isdecimal():
            raise UserError(f"{pairs_path}, line {number}: expected `name n m` or `name n name m`")
        for column, (name, picture) in ((first, fields[:2]), (second, fields[2:])):
            path = Path(folder, name, f"{name}_{int(picture):04d}.jpg")
            column.append(numbers.setdefault(path, len(numbers)))
    if len(genuine) != 2 * folds * per_fold:
        raise UserError(f"{pairs_path}: the first line promises {2 * folds * per_fold} pairs, {len(genuine)} follow")
    uneven = np.flatnonzero(np.reshape(genuine, (folds, -1)).sum(1) != per_fold)
    if len(uneven):
        raise UserError(f"{pairs_path}: fold {uneven[0] + 1} is not {per_fold} genuine and {per_fold} impostor pairs")
    check_pictures(list(numbers), folder)
    return Pairs(list(numbers), np.array(first), np.array(second), np.array(genuine), folds)


def split_line(line):
    fields = [field.strip() for field in line.strip().split("\t")]
    return fields if len(fields) in (3, 4) else line.split()


def check_pictures(paths, folder):
    if not Path(folder).is_dir():
        raise UserError(f"{folder} is not a folder: put the aligned LFW pictures there, or give --lfw-dir")
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} of the {len(paths)} pictures in the pairs list, "
                        f"{missing[0]} first: it must hold <Person>/<Person>_0001.jpg and so on")


def looks_unaligned(paths):
    """Whether these are the original 250x250 pictures, of which a face fills a quarter, and not aligned crops."""
    sizes = [open_image(path).size for path in paths[:: max(1, len(paths) // 20)]]
    return sizes.count((250, 250)) > len(sizes) / 2


class SubjectCrop:
    """`crop(path)` -> the aligned crop (PIL, 112x112) of the person whom an original LFW picture is of.

    LFW is whole only with every picture: where the detector finds no face, the usual place of one is taken.
    `without_face` is the set of those paths.
    """

    def __init__(self, detector):
        self.detector, self.without_face = detector, set()

    def __call__(self, path):
        image = open_image(path)
        faces = self.detector.detect(image)
        if faces:
            landmarks = self.detector.refine(image, main_face(faces, image)).landmarks
        else:
            self.without_face.add(path)
            landmarks = LANDMARKS * image.width / 250
        return align(image, landmarks)


def pair_distances(embeddings, pairs, part=2048):
    """Embeddings (len(pairs.paths), D) -> L2 distances (N,), float64.

    `part` pairs at once: with 512 numbers 46 MB for a million pairs, the distances among them.
    """
    embeddings, distances = np.asarray(embeddings), np.empty(len(pairs.first))
    for start in range(0, len(distances), part):
        pairs_of_part = slice(start, start + part)
        first, second = (embeddings[side[pairs_of_part]].astype(np.float64) for side in (pairs.first, pairs.second))
        distances[pairs_of_part] = np.linalg.norm(first - second, axis=1)
    return distances


def embed_pairs(net, pairs, settings, progress=None, crop=None):
    """-> embeddings (len(pairs.paths), D), float32. settings: as for embed. Under torchrun every process takes a share.

    crop: a SubjectCrop for original pictures.
    Raises UserError where the network gives none to tell pictures apart by.
    """
    processes, rank = distributed.world_size(), distributed.rank()
    try:
        share = embed(net, pairs.paths[rank::processes], settings, progress, crop)
    except UselessEmbeddings as error:  # raised by every process, so that none waits for another
        share = UselessEmbeddings(f"no figures on {pairs.name}: {error}")
    embeddings = np.empty((len(pairs.paths), net.embedding_size), np.float32)
    for place, part in enumerate(distributed.gather(share)):
        if isinstance(part, UselessEmbeddings):
            raise part
        embeddings[place::processes] = part
    return embeddings


def measure(embeddings, pairs, far):
    """-> (Verification, distances (N,)). Raises UserError where the distances allow no figures."""
    distances = pair_distances(embeddings, pairs)
    try:
        return verification(distances, pairs.genuine, pairs.folds, far), distances
    except ValueError as error:
        raise UserError(f"no figures on {pairs.name}: {error}") from None


def evaluate(net, pairs, settings, progress=None, crop=None):
    """embed_pairs() and measure(). settings: as for embed, and far."""
    return measure(embed_pairs(net, pairs, settings, progress, crop), pairs, settings.far)
