"""Training data: decoded faces, the validation split, and the order in which they are seen."""
import gc
import hashlib
import os
import random
import re
import signal
from collections import Counter
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from nets.head import IGNORE
from utils.common import distributed
from utils.common.device import available_cores
from utils.common.errors import UserError
from utils.common.files import hash_file
from utils.common.stderr import caught_stderr
from utils.data.annotation import check_there, check_trainable, pack, read_annotation, read_names
from utils.data.bad_pictures import BadPicture, reason_of
from utils.data.records import holds_records, read_records_of
from utils.data.scan import NESTED, list_folder, unwritable
from utils.faces.images import MOST_PIXELS, EncodedImage, check_is_file, describe_unread, extension, preprocess

FEWEST_BATCHES = 10  # of an epoch, below which the batch size is too large for the pictures
MOST_TRIED = 100  # pictures instead of one that does not open: where none of so many does, the disk is gone

# The header of a frame of three colours in a JPEG: its height and width.
COLOUR_FRAME = re.compile(rb"\xff[\xc0-\xcf]\x00\x11\x08(..)(..)\x03", re.DOTALL)


class FaceDataset(Dataset):
    """Item i -> (uint8 (H, W, 3), label, i). Nothing random happens here: augmentation works on the batch.

    Where picture i does not open, the item is that of another, and so is its number: the next of the same person that
    does, or where there is none the next in the list. Raises UserError where MOST_TRIED of them do not open either.
    """

    def __init__(self, pictures, labels, input_shape, letterbox):
        """pictures: PackedPaths, Records or Joined."""
        self.pictures, self.labels = pictures, torch.as_tensor(labels, dtype=torch.int32)
        self.input_shape, self.letterbox = input_shape, letterbox

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        faults = []
        for used in islice(chain([index], self.instead_of(index)), 1 + MOST_TRIED):
            try:
                return self.load(used), int(self.labels[used]), used
            except UserError as error:
                faults.append(error)
        raise UserError(f"{len(faults)} pictures in turn do not open, the first: {faults[0]}")

    def load(self, index):
        return load_image(self.pictures[index], self.input_shape, self.letterbox)

    def name(self, index):
        return self.pictures.name(index)

    def instead_of(self, index):
        """Yield the numbers of the pictures that may stand in for one, the next first."""
        own = np.flatnonzero(self.labels.numpy() == int(self.labels[index]))
        place = np.searchsorted(own, index)
        yield from np.concatenate([own[place + 1:], own[:place]]).tolist()
        following = (other % len(self) for other in range(index + 1, index + len(self)))
        yield from (other for other in following if self.labels[other] != self.labels[index])

    def replaced(self, asked, used):
        """The numbers asked for and those that came -> a BadPicture for each that is another."""
        return [BadPicture(self.name(bad), int(self.labels[bad]), self.why_bad(bad), self.name(other))
                for bad, other in zip(asked, used) if bad != other]

    def why_bad(self, index):
        try:
            self.load(index)
        except UserError as error:
            return reason_of(error, self.name(index))
        return "did not open, and did when read again"


def load_image(source, input_shape, letterbox):
    """What `preprocess` makes of a path or EncodedImage, bit for bit, as a uint8 tensor (H, W, 3).

    In four fifths of the time (benchmarks/loader_speed.py).
    """
    with caught_stderr():  # libjpeg's warnings, which txt_annotation.py has told with the names of the files
        pixels = decode_color_jpeg(source)
    if pixels is None:
        return torch.from_numpy(preprocess(source, input_shape, letterbox))
    if pixels.shape[:2] == tuple(input_shape[:2]):
        return pixels
    return torch.from_numpy(preprocess(pixels.numpy(), input_shape, letterbox))


def decode_color_jpeg(source):
    """-> uint8 (H, W, 3) by torchvision, which gives Pillow's pixels sooner (benchmarks/loader_speed.py).

    None for what is left to Pillow: other formats, left_to_pillow(), and damaged files, which it names.
    """
    stored = isinstance(source, EncodedImage)
    if not stored:
        if not str(source).lower().endswith((".jpg", ".jpeg")):
            return None
        check_is_file(source)
    try:
        from torchvision.io import ImageReadMode, decode_jpeg  # takes a second, and only training needs it
        data = np.frombuffer(source.getvalue(), np.uint8).copy() if stored else np.fromfile(source, np.uint8)
        if left_to_pillow(data.tobytes()):
            return None
        pixels = decode_jpeg(torch.from_numpy(data), ImageReadMode.UNCHANGED)
    except (OSError, RuntimeError, ImportError, AttributeError):  # the last two: a torchvision without the decoder
        return None
    return pixels.permute(1, 2, 0).contiguous() if len(pixels) == 3 else None


def left_to_pillow(content):
    """Whether bytes are no JPEG, or one that is not in colour, or may be turned by EXIF or XMP, or may be too large."""
    sizes = [int.from_bytes(height, "big") * int.from_bytes(width, "big")
             for height, width in COLOUR_FRAME.findall(content)]
    return (not content.startswith(b"\xff\xd8\xff") or not 0 < max(sizes, default=0) <= MOST_PIXELS
            or b"Exif\0\0" in content or b"ns.adobe.com/xap" in content)


class EpochBatches:
    """A batch sampler whose order depends on (seed, epoch) alone, and which can start in the middle of an epoch.

    Set `epoch` and `start` (in batches) before iterating. `batch_size` is the global one: each process
    gets its share of every batch. The last partial batch is left out (BatchNorm needs more than one
    picture), unless it is the only one.
    """

    def __init__(self, count, batch_size, seed):
        processes = distributed.world_size()
        self.count, self.seed = count, seed
        self.batch_size = min(batch_size, count) // processes * processes
        self.epoch = self.start = 0
        self.order, self.order_of = None, None  # of all pictures, and the epoch that it is of

    def __len__(self):
        return max(0, self.count // self.batch_size - self.start)

    def advice(self):
        """-> lines on batches too large for so few pictures: of those that leave out more than a tenth, and of more."""
        size, processes = self.batch_size, distributed.world_size()
        if self.count >= FEWEST_BATCHES * size:
            return []
        fitting = max(2, self.count // FEWEST_BATCHES // processes) * processes
        remedy = f"--batch-size {fitting} gives {self.count // fitting}" if fitting < size else "add pictures"
        return [f"{self.count} pictures in batches of {size}: only {self.count // size} batch(es) an epoch, which "
                f"leave out {self.count % size}; {remedy}"]

    def __iter__(self):
        for batch in range(self.start, self.start + len(self)):
            yield self.indices_of(batch)

    def indices_of(self, batch):
        """The numbers of this process's pictures in a batch of the epoch."""
        if self.order_of != self.epoch:
            generator = torch.Generator().manual_seed(mix_seeds(self.seed, self.epoch))
            self.order, self.order_of = torch.randperm(self.count, generator=generator), self.epoch
        share = self.batch_size // distributed.world_size()
        first = batch * self.batch_size + distributed.rank() * share
        return self.order[first:first + share].tolist()


def mix_seeds(*numbers):
    """Several non-negative integers -> one 63-bit seed that differs as soon as one of them does."""
    return random.Random(repr(numbers)).getrandbits(63)


def split_validation(labels, fraction, seed):
    """-> (training indices, validation indices), int64 tensors, disjoint and sorted.

    Never takes a person's last training picture, so a small dataset may give fewer than asked for, or none. Pictures
    of IGNORE, which are the last, are all trained on: with them or without, the validation set is the same.
    """
    labels = np.asarray(labels)
    nobody = np.flatnonzero(labels == IGNORE)
    labels = labels[:len(labels) - len(nobody)]
    order = np.random.default_rng(seed).permutation(len(labels))
    last = np.zeros(labels.max() + 1, np.int64)
    last[labels[order]] = np.arange(len(labels))  # of several places in the order that a person has, the last one stays
    free = np.ones(len(labels), bool)
    free[last] = False
    validated = np.zeros(len(labels), bool)
    validated[order[free][:int(len(labels) * fraction)]] = True
    trained = np.concatenate([np.flatnonzero(~validated), nobody])
    return torch.from_numpy(trained), torch.from_numpy(np.flatnonzero(validated))


def batches_of(loader):
    """Yield the batches of a DataLoader. Raises UserError where one of its processes was killed."""
    try:
        batches = iter(loader)  # which asks processes that are kept from the last epoch for their first batches
        leave_deaths_to_the_loader()
        yield from batches
    # OSError and EOFError: it had announced a batch, and died before that was fetched.
    except (RuntimeError, OSError, EOFError) as error:
        if not loader.num_workers or str(error).startswith("Caught "):  # an error within a living one
            raise
        raise UserError("a process that decodes pictures was killed, most often for want of memory: lower "
                        "--num-workers") from None


def start_worker(number):
    """In a process that decodes pictures: what it has of the main one stays shared, as far as that goes."""
    leave_signals_to_main(number)
    gc.freeze()  # a collection would write into every object of Python's: 47 instead of 8 MB


def make_loaders(pictures, labels, settings, device):
    """-> (training loader over EpochBatches, validation loader or None), as `settings` of train.py asks.

    pictures, labels: of a TrainingSet; shared by the loaders' processes, not copied.
    """
    def make_loader(indices, **batching):
        dataset = FaceDataset(pictures.subset(indices), labels[indices], settings.input_shape,
                              settings.letterbox_image)
        return DataLoader(dataset, num_workers=workers, pin_memory=device.type == "cuda",
                          persistent_workers=workers > 0, worker_init_fn=start_worker,
                          # A generator of its own: else every epoch's start would draw from the global one.
                          generator=torch.Generator().manual_seed(settings.seed), **batching)

    workers = min(settings.num_workers, available_cores())  # more would only cost memory, and a warning
    training, validation = split_validation(labels, settings.val_split, settings.seed)
    batches = EpochBatches(len(training), settings.batch_size, settings.seed)
    if batches.batch_size < 2 * distributed.world_size():
        raise UserError(f"{len(training)} pictures in batches of {settings.batch_size} are fewer than two a process: "
                        "BatchNorm needs more")
    return (make_loader(training, batch_sampler=batches),
            make_loader(validation[distributed.rank()::distributed.world_size()],
                        batch_size=settings.batch_size // distributed.world_size())
            if len(validation) else None)


class TrainingSet(NamedTuple):
    pictures: object      # PackedPaths, Records or Joined
    labels: torch.Tensor  # int32 (N,), 0..C-1; IGNORE for pictures without a label, which are the last
    names: list           # of the C people
    sha256: str           # tells this set from others


def read_training_set(settings):
    """What --rec or --annotation-path, and --unlabeled, name -> TrainingSet. Prints what is left out.

    Raises UserError for a set that does not read, that is too small, or whose pictures have moved.
    """
    labelled = read_labelled(settings)
    if not settings.unlabeled:
        return labelled
    pictures, sha256, lines = read_unlabeled(settings.unlabeled)
    print("\n".join([f"{settings.unlabeled}: {len(pictures)} pictures without labels", *lines]))
    nobody = torch.full((len(pictures),), IGNORE, dtype=torch.int32)
    return TrainingSet(Joined(labelled.pictures, pictures), torch.cat([labelled.labels, nobody]), labelled.names,
                       hashlib.sha256((labelled.sha256 + sha256).encode()).hexdigest())


def read_labelled(settings):
    """What --rec or --annotation-path names -> TrainingSet."""
    folder = settings.rec or (settings.annotation_path if holds_records(settings.annotation_path) else None)
    if folder:
        pictures, labels, skipped = read_records_of(folder)
        for record, reason in skipped:
            print(f"skipped {record}: {reason}")
        check_trainable(labels, folder)
        return TrainingSet(pictures, labels, [str(label) for label in range(int(labels.max()) + 1)],
                           pictures.sha256(labels))
    path = settings.annotation_path
    pictures, labels = read_annotation(path, settings.datasets_path)
    check_trainable(labels, path)
    check_there(pictures, path, settings.max_bad_pictures)
    return TrainingSet(pictures, labels, read_names(path, int(labels.max()) + 1), hash_file(path))


def read_unlabeled(root):
    """-> (PackedPaths of all pictures below a folder, however deep; SHA-256 of where they lie in it; lines to print).

    Links to folders are followed, hidden folders left out. Raises UserError where there is no picture, and for a folder
    that cannot be read.
    """
    if not os.path.isdir(root):
        raise UserError(f"{root} is not a folder: give --unlabeled the one that the pictures lie in")
    if unwritable(str(root)):
        raise UserError(f"{str(root)!a} has {unwritable(str(root))}: give the folder another")
    paths, left_out = list_below(root)
    if not paths:
        raise UserError(f"{root} holds no picture: give --unlabeled the folder that the pictures lie in")
    names = "\n".join(os.path.relpath(path, root) for path in paths)
    return pack(paths), hashlib.sha256(names.encode("utf-8")).hexdigest(), [*describe_unlabeled(left_out)]


def list_below(root):
    """-> (paths that are pictures by their names, [(path, reason)] of what else is there), folder by folder."""
    paths, left_out, waiting, seen = [], [], [root], set()
    while waiting:
        folder = waiting.pop()
        if (place := os.path.realpath(folder)) in seen:  # a link to a folder above it
            continue
        seen.add(place)
        pictures, others = list_folder(folder)
        paths += pictures
        for path, reason in reversed(others):
            name = os.path.basename(path)
            if path == folder:
                raise UserError(f"{folder} {reason}: let it be read, or move it out of --unlabeled")
            if reason != NESTED or unwritable(name):
                left_out.append((path, unwritable(name) or reason))
            elif not name.startswith("."):
                waiting.append(path)
    return paths, left_out


def describe_unlabeled(left_out):
    """-> lines on what was left out and looks like pictures, or is a folder of them."""
    if line := describe_unread(Counter(extension(path) for path, _ in left_out)):
        yield line
    badly_named = [(path, reason) for path, reason in left_out if unwritable(os.path.basename(path))]
    if badly_named:
        path, reason = badly_named[0]
        yield f"left out: {len(badly_named)} files and folders that need other names, {path!a} has {reason}"


class Joined:
    """Two sequences of pictures, PackedPaths or Records, one after the other."""

    def __init__(self, first, second):
        self.first, self.second = first, second

    def __len__(self):
        return len(self.first) + len(self.second)

    def __getitem__(self, index):
        part, place = self.place_of(index)
        return part[place]

    def name(self, index):
        """How a message calls a picture."""
        part, place = self.place_of(index)
        return part.name(place)

    def place_of(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"{index} of {len(self)} pictures")
        count = len(self.first)
        return (self.first, index) if index < count else (self.second, index - count)

    def subset(self, indices):
        """int64 tensor (M,), ascending -> those pictures."""
        count = len(self.first)
        first, second = indices[indices < count], indices[indices >= count] - count
        return Joined(self.first.subset(first), self.second.subset(second))


def leave_deaths_to_the_loader():
    """Undo the SIGCHLD handler that the first DataLoader with workers installs.

    When a worker was killed it raises wherever the main process is, also half-way through an optimizer step. The
    loader itself finds a dead worker too, within 5 seconds, but only while it waits for a batch.
    """
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def leave_signals_to_main(worker):
    """For DataLoader workers: Ctrl-C and a SIGTERM to the group reach every process of it, but only main decides.

    A worker therefore leaves the group. It must not ignore SIGTERM: that is how Python ends workers at exit.
    """
    if hasattr(os, "setsid"):
        os.setsid()
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
