"""Benchmarks of image pairs: LFW's list and images, insightface's .bin files, and a network's metrics on them."""
import io
import pickle
import shutil
import tarfile
import warnings
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from utils.common import distributed
from utils.common.device import available_cores
from utils.common.errors import UserError, first_line
from utils.common.files import atomic_write, locate, read_lines
from utils.evaluation.embedding import InvalidEmbeddings, embed_images
from utils.evaluation.metrics import can_measure_far, verification_metrics
from utils.faces.alignment import align
from utils.faces.face_crop import NoDetector, are_aligned
from utils.faces.images import EncodedImage, open_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")  # of the images in --lfw-dir, the first that exists
# Landmarks of a face in a 250x250 LFW image: the mean over folds 1 to 3, as the detector finds them.
USUAL_LANDMARKS = np.array([(104.5, 112.2), (145.9, 111.6), (125.4, 137.3), (108.4, 157.4), (143.4, 156.9)])


class Pairs(NamedTuple):
    paths: list          # each distinct image once: a path, or an EncodedImage
    first: np.ndarray    # (N,) indices into paths
    second: np.ndarray
    genuine: np.ndarray  # (N,) bool: both images show one person
    folds: int
    name: str            # of the benchmark
    identities: list | None = None  # the person of each image, if known


def read_pairs(pairs_path, folder):
    """Return the Pairs of a list and a folder of images.

    LFW's list: the first line holds the number of folds and of genuine pairs per fold. A line `name n m` is a genuine
    pair, a line `name n name m` an impostor pair. Image n of a person is <folder>/<name>/<name>_000n.jpg.
    Own lists: a line `path path 1` is a genuine pair, `path path 0` an impostor pair; paths are relative to the folder.
    Fields may hold spaces if tabs separate them. Raises UserError for a malformed line and for missing images.
    """
    pairs_path = locate(pairs_path)
    lines = [line.strip().split("\t" if "\t" in line.strip() else None)
             for line in read_lines(pairs_path, "LFW's comes with the repository, give --lfw-pairs")]
    is_lfw = len(lines[0]) != 3
    parse = lfw_pair if is_lfw else own_pair
    indices, rows = {}, []  # indices: path -> its index in Pairs.paths
    for number, fields in enumerate(lines, 1):
        if not fields or (is_lfw and number == 1):
            continue
        try:
            path, other, same = parse(fields, folder)
        except ValueError as error:
            raise UserError(f"{pairs_path}, line {number}: expected {error}") from None
        rows.append((indices.setdefault(path, len(indices)), indices.setdefault(other, len(indices)), same))
    first, second, genuine = np.array(rows, np.int64).reshape(-1, 3).T
    pairs = Pairs(list(indices), first, second, genuine.astype(bool), 10, pairs_path.stem)
    pairs = with_lfw_folds(pairs, lines[0], pairs_path) if is_lfw else with_even_folds(pairs, pairs_path)
    missing = [path for path in pairs.paths if not path.is_file()]
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} of the {len(pairs.paths)} images in {pairs_path}, such as "
                        f"{missing[0]}: set --lfw-dir, eval_LFW.py --download or --align-from; train.py: --no-lfw-eval")
    return pairs


def lfw_pair(fields, folder):
    genuine = len(fields) == 3
    if genuine:
        fields = [*fields[:2], fields[0], fields[2]]
    if len(fields) != 4 or not fields[1].isdecimal() or not fields[3].isdecimal():
        raise ValueError("`name n m` or `name n name m`, or in all lines `path path 1` or `path path 0`")
    return lfw_image(folder, *fields[:2]), lfw_image(folder, *fields[2:]), genuine


def lfw_image(folder, name, number):
    paths = [Path(folder, name, f"{name}_{int(number):04d}{suffix}") for suffix in SUFFIXES]
    return next((path for path in paths if path.is_file()), paths[0])


def own_pair(fields, folder):
    if len(fields) != 3 or fields[2] not in ("0", "1"):
        raise ValueError("`path path 1` or `path path 0`")
    return Path(folder, fields[0]), Path(folder, fields[1]), fields[2] == "1"


def with_lfw_folds(pairs, header, pairs_path):
    if len(header) != 2 or not all(map(str.isdecimal, header)) or int(header[0]) < 2 or int(header[1]) < 1:
        raise UserError(f"{pairs_path}, line 1: expected two or more folds and their pairs, such as `10 300`, or for "
                        "your own pairs `path path 1`, with tabs if a path has spaces")
    folds, per_fold = map(int, header)
    if len(pairs.genuine) != 2 * folds * per_fold:
        raise UserError(f"{pairs_path}: the first line promises {2 * folds * per_fold} pairs, "
                        f"{len(pairs.genuine)} follow")
    return pairs._replace(folds=folds, name="LFW" if pairs.name == "lfw_pair" else pairs.name,
                          identities=[path.parent.name for path in pairs.paths])


def with_even_folds(pairs, pairs_path):
    """Return the pairs in another order, so that consecutive folds, at most ten, hold both kinds evenly."""
    kinds = [np.flatnonzero(pairs.genuine), np.flatnonzero(~pairs.genuine)]
    fewest = min(map(len, kinds))
    if fewest < 2:
        raise UserError(f"{pairs_path}: expected two or more pairs of one person and of two people, "
                        f"found {len(kinds[0])} and {len(kinds[1])}")
    places = np.concatenate([(np.arange(len(kind)) + 0.5) / len(kind) for kind in kinds])
    order = np.concatenate(kinds)[np.argsort(places, kind="stable")]
    return pairs._replace(first=pairs.first[order], second=pairs.second[order], genuine=pairs.genuine[order],
                          folds=min(10, max(2, fewest // 2)))


def check_aligned(pairs):
    """Return whether the images are aligned to the template, and print a line if they are not or if it is unknown."""
    try:
        aligned = are_aligned(pairs.paths)
    except NoDetector as error:
        print(f"{pairs.name}: the alignment is not checked: {error}")
        return None
    if not aligned:
        print(f"{pairs.name}: the images are not aligned to the 112x112 template, so the accuracy is lower; "
              "eval_LFW.py --align-from DIR --lfw-dir NEW aligns a folder")
    return aligned


# insightface's verification files

def read_bin(path):
    """Return the Pairs of an insightface verification file, such as lfw.bin, cfp_fp.bin or agedb_30.bin.

    The file is a pickle of ([image, ...], [genuine, ...]): images 2i and 2i + 1 are pair i. An image is the bytes of a
    JPEG file, or the uint8 array of cv2.imencode; a flag is a bool or a number, of Python or numpy.
    Raises UserError for any other file. A pickle that asks for anything else runs nothing.
    """
    path = Path(path)
    try:
        images, genuine = PairsUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        images = [image.array().tobytes() if isinstance(image, Stored) else image for image in images]
        genuine = genuine.array() if isinstance(genuine, Stored) else genuine
        genuine = [flag.array().item() if isinstance(flag, Stored) else flag for flag in genuine]
        if not all(isinstance(image, bytes) for image in images) or not all(flag in (0, 1) for flag in genuine):
            raise ValueError("expected JPEG files, and a true or false per pair")
    except Exception as error:  # a missing file, or a broken pickle, which may raise anything
        raise UserError(f"{path} is no verification file ({first_line(error)}): download it again") from None
    if len(images) != 2 * len(genuine) or not genuine:
        raise UserError(f"{path} holds {len(images)} images for {len(genuine)} pairs: download or pack it again")
    indices = {}  # content -> its index in Pairs.paths: lfw.bin holds 12,000 images, 7,701 of them distinct
    of_image = np.array([indices.setdefault(content, len(indices)) for content in images])
    first_seen = np.unique(of_image, return_index=True)[1]
    paths = [EncodedImage(images[number], f"{path}, image {number}") for number in first_seen]
    return Pairs(paths, of_image[0::2], of_image[1::2], np.array(genuine, bool), 10, path.stem)


class Stored:
    """A numpy array, number or dtype as it is pickled: the parts of its constructor's call and of its state.

    numpy does not rebuild it: with a forged dtype state it would use the array's bytes as pointers.
    """

    def __init__(self, *parts):
        self.parts = parts

    def __setstate__(self, state):
        self.parts += state

    def array(self):
        """Return its values as a flat array. In every version of numpy the last bytes are the values."""
        dtype, = (part for part in self.parts if isinstance(part, Stored))
        name, *_, order = dtype.parts[:5]  # name, two flags, version, byte order
        content = [part for part in self.parts if isinstance(part, bytes | bytearray)][-1]
        return np.frombuffer(content, np.dtype(name).newbyteorder(order))


class PairsUnpickler(pickle.Unpickler):
    """Reads bytes, numbers and numpy arrays of them. No other name is looked up, and no code of numpy runs."""

    allowed = {
        "_codecs.encode": lambda text, encoding: text.encode("latin1"),  # Python 3's bytes in protocols 0 to 2
        "numpy.ndarray": None, "numpy.dtype": Stored, "numpy.core.multiarray._reconstruct": Stored,
        "numpy.core.multiarray.scalar": Stored, "numpy.core.numeric._frombuffer": Stored}

    def find_class(self, module, name):
        name = f"{module}.{name}".replace("numpy._core", "numpy.core")  # its name since numpy 2
        if name not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {name!r}, which images do not need")
        return self.allowed[name]


# The images of LFW

def fetch_lfw():
    """Return scikit-learn's folder of the original 250x250 images, which are downloaded if they are missing."""
    from sklearn.datasets import fetch_lfw_people, get_data_home
    folder = Path(get_data_home(), "lfw_home", "lfw")
    if folder.is_dir():
        return folder
    print(f"fetching lfw.tgz (about 200 MB) by scikit-learn into {folder.parent}", flush=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of each attempt that fails
            # It then finds nobody with so many images and raises ValueError.
            fetch_lfw_people(funneled=False, min_faces_per_person=100_000)
    except ValueError:
        pass
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)  # scikit-learn would take a partly unpacked folder for complete
        if not isinstance(error, OSError | EOFError | tarfile.TarError | zlib.error):
            raise
        raise UserError(f"cannot fetch LFW ({first_line(error)}): try again with a network, or unpack lfw.tgz so that "
                        f"{folder} holds <Person>/<Person>_0001.jpg and so on") from None
    return folder


def align_lfw(paths, source, folder, detector):
    """Write the aligned crops of the original images <source>/<path> to <folder>/<path>, as JPEG data.

    Existing crops are kept, so that an interrupted run resumes. The usual landmarks replace those of a face that is not
    found, because the list needs every image.
    Returns the numbers of images that were "kept", "aligned" and "without a face".
    Raises UserError for an image outside the source.
    """
    for path in paths:
        if not path.is_relative_to(source) or ".." in path.relative_to(source).parts:
            raise UserError(f"{path} is not below {source}: give a list of paths relative to it")

    def write(path):
        target = Path(folder, path.relative_to(source))
        if target.is_file():
            return "kept"
        image = open_image(path)
        faces = detector.detect(image)
        landmarks = (detector.refine(image, faces[0]).landmarks if faces
                     else USUAL_LANDMARKS * image.width / 250)
        with atomic_write(target) as temporary:
            align(image, landmarks).save(temporary, format="jpeg", quality=95, subsampling=0)
        return "aligned" if faces else "without a face"

    with ThreadPoolExecutor(available_cores()) as pool:
        return Counter(tqdm(pool.map(write, paths), "aligning", len(paths), unit="img", disable=None))


# A network's metrics

def embed_pairs(net, pairs, **options):
    """Return the embeddings (len(pairs.paths), D) of all images. Each rank embeds a part. options: of embed_images."""
    ranks, rank = distributed.world_size(), distributed.rank()
    try:
        own_part = embed_images(net, pairs.paths[rank::ranks], **options)
    except InvalidEmbeddings as error:  # raised by all ranks, so that none waits for another
        own_part = InvalidEmbeddings(f"no metrics on {pairs.name}: {error}")
    embeddings = np.empty((len(pairs.paths), net.embedding_size), np.float32)
    for other, part in enumerate(distributed.gather(own_part)):
        if isinstance(part, InvalidEmbeddings):
            raise part
        embeddings[other::ranks] = part
    return embeddings


def pair_metrics(embeddings, pairs, far=1e-3, block=2048):
    """Return (VerificationMetrics, L2 distances (N,), float64) of embeddings (len(pairs.paths), D).

    val, val_std, far and far_threshold are None if there are too few impostor pairs for this FAR.
    block: pairs at once. A million pairs of 512 dimensions take 46 MB instead of 12 GB.
    Raises UserError for distances without metrics.
    """
    embeddings, distances = np.asarray(embeddings), np.empty(len(pairs.first))
    for start in range(0, len(distances), block):
        rows = slice(start, start + block)
        first, second = (embeddings[side[rows]].astype(np.float64) for side in (pairs.first, pairs.second))
        distances[rows] = np.linalg.norm(first - second, axis=1)
    try:
        metrics = verification_metrics(distances, pairs.genuine, pairs.folds, far)
    except ValueError as error:
        raise UserError(f"no metrics on {pairs.name}: {error}") from None
    if not can_measure_far(pairs.genuine, pairs.folds, far):
        metrics = metrics._replace(val=None, val_std=None, far=None, far_threshold=None)
    return metrics, distances
