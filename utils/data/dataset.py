"""The images to train on: the training set, the validation split, decoding, and the order of the batches."""
import gc
import hashlib
import os
import random
import signal

import numpy as np
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from nets.head import IGNORE
from utils.common import distributed
from utils.common.device import available_cores
from utils.common.errors import UserError, print_error
from utils.common.files import hash_file, identity_name
from utils.data.annotation import check_files_exist, check_trainable, pack, read_annotation, read_names
from utils.data.records import read_records
from utils.faces.images import EXTENSIONS, describe_unread, extension, preprocess

MAX_UNREADABLE = 100  # images in a row; if none of them can be read, the disk is gone


def read_training_set(settings):
    """Return (images, labels, class names, SHA-256 of the list of images) of --annotation-path and --unlabeled.

    images: PackedPaths, Records, or a ConcatDataset of one of them and unlabeled PackedPaths.
    labels: int32 tensor (N,), 0..C-1; IGNORE for unlabeled images, which are the last.
    Raises UserError for a set that cannot be read, that is too small, or whose images have moved.
    """
    path = settings.annotation_path
    if os.path.isdir(path):
        if settings.datasets_path:
            raise UserError(f"{path} holds its images itself: leave out --datasets-path")
        images, labels, sha256 = read_records(path)
        names = [str(label) for label in range(int(labels.max()) + 1)]
    else:
        images, labels = read_annotation(path, settings.datasets_path)
        names, sha256 = read_names(path, int(labels.max()) + 1), hash_file(path)
        check_files_exist(images, path)
    check_trainable(labels, path)
    if settings.unlabeled:
        unlabeled, unlabeled_sha256 = read_unlabeled(settings.unlabeled)
        images = ConcatDataset([images, unlabeled])
        labels = torch.cat([labels, torch.full((len(unlabeled),), IGNORE, dtype=torch.int32)])
        sha256 = hashlib.sha256((sha256 + unlabeled_sha256).encode()).hexdigest()
    return images, labels, names, sha256


def read_unlabeled(root):
    """Return (PackedPaths of all images below a folder, SHA-256 of their paths within it). Prints their number.

    Hidden files and folders are left out. Raises UserError if there is no image.
    """
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        files += [os.path.join(folder, name) for name in names if not name.startswith(".")]
    paths = sorted(path for path in files if extension(path) in EXTENSIONS)
    if not paths:
        raise UserError(f"{root} holds no image: give --unlabeled a folder of images")
    print(f"{root}: {len(paths)} unlabeled images")
    if unread := describe_unread(files):
        print(unread)
    names = "\n".join(os.path.relpath(path, root) for path in paths)
    return pack(paths), hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()


def print_overlap(class_names, benchmark, identities):
    """Print a line if a benchmark shows identities of the training set, by the letters and digits of their names."""
    def plain(name):
        return "".join(filter(str.isalnum, identity_name(name).casefold()))

    benchmark_names = set(map(plain, identities))
    shared = [name for name in class_names if plain(name) in benchmark_names]
    if shared:
        print(f"{len(shared)} of {len(class_names)} people to train on, {shared[0]} first, are also in {benchmark}: "
              "leave them out, or its results are too good")


def split_validation(labels, fraction, seed):
    """Return (training indices, validation indices): int64 tensors, disjoint and sorted.

    Never takes an identity's last training image, so a small set may give fewer than the fraction, or none. All
    unlabeled images are training images. They do not change the validation set.
    """
    labels = np.asarray(labels)
    labeled = labels[labels != IGNORE]
    order = np.random.default_rng(seed).permutation(len(labeled))
    last = np.zeros(labeled.max() + 1, np.int64)
    last[labeled[order]] = np.arange(len(labeled))  # an identity's last position in the order is written last
    held_out = np.zeros(len(labels), bool)
    held_out[np.delete(order, last)[:int(len(labeled) * fraction)]] = True
    return torch.from_numpy(np.flatnonzero(~held_out)), torch.from_numpy(np.flatnonzero(held_out))


class FaceDataset(Dataset):
    """Item i is (image, label, index): uint8 (H, W, 3), int, and the index of the image in the training set.

    images, labels: of read_training_set(). indices: those of this part of it, the training or validation images.
    If an image cannot be read, one line is printed and the next one that can is returned instead, with its own index.
    """

    def __init__(self, images, labels, indices, input_shape):
        self.images, self.labels, self.indices, self.input_shape = images, labels, indices, input_shape

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, position):
        """Raises UserError if MAX_UNREADABLE images in a row cannot be read."""
        for offset in range(MAX_UNREADABLE):
            index = int(self.indices[(position + offset) % len(self)])
            try:
                return self.load(index), int(self.labels[index]), index
            except UserError as error:
                message = str(error)
                print_error(f"{message} (the next image takes its place)")
        raise UserError(f"{MAX_UNREADABLE} images in a row cannot be read, the last: {message}")

    def load(self, index):
        return torch.from_numpy(preprocess(self.images[index], self.input_shape))


class EpochBatches:
    """A batch sampler whose order depends on (seed, epoch) alone, and which can start in the middle of an epoch.

    Set `epoch` and `start` (in batches) before iterating. batch_size: over all ranks; each rank gets its part of every
    batch. The last incomplete batch is dropped, unless it is the only one.
    """

    def __init__(self, count, batch_size, seed):
        world_size = distributed.world_size()
        self.count, self.seed = count, seed
        self.batch_size = min(batch_size, count) // world_size * world_size
        self.epoch = self.start = 0

    def __len__(self):
        return max(0, self.count // self.batch_size - self.start)

    def __iter__(self):
        """Yield this rank's indices into the training images, a list for each batch."""
        generator = torch.Generator().manual_seed(mix_seeds(self.seed, self.epoch))
        order = torch.randperm(self.count, generator=generator)
        size = self.batch_size // distributed.world_size()
        for batch in range(self.start, self.start + len(self)):
            first = batch * self.batch_size + distributed.rank() * size
            yield order[first:first + size].tolist()


def mix_seeds(*numbers):
    """Return a 63-bit seed made of several non-negative integers."""
    return random.Random(repr(numbers)).getrandbits(63)


def make_loaders(images, labels, settings, device):
    """Return (training loader over EpochBatches, validation loader or None) of what read_training_set() returned."""
    def make_loader(indices, **batching):
        dataset = FaceDataset(images, labels, indices, settings.input_shape)
        return DataLoader(dataset, num_workers=workers, pin_memory=device.type == "cuda",
                          persistent_workers=workers > 0, worker_init_fn=start_worker,
                          # A generator of its own: without one, each epoch's start would draw from the global one.
                          generator=torch.Generator().manual_seed(settings.seed), **batching)

    workers = min(settings.num_workers, available_cores())  # more would only cost memory, and PyTorch would warn
    rank, world_size = distributed.rank(), distributed.world_size()
    training, validation = split_validation(labels, settings.val_split, settings.seed)
    batches = EpochBatches(len(training), settings.batch_size, settings.seed)
    if batches.batch_size < 2 * world_size:
        raise UserError(f"{len(training)} images in batches of {settings.batch_size} are fewer than two a rank: "
                        "BatchNorm needs more, use a larger --batch-size or add images")
    train_loader = make_loader(training, batch_sampler=batches)
    if settings.shard_head:  # the ranks communicate in each batch, so all get equally many images
        validation = validation[:len(validation) // world_size * world_size]
    if not len(validation):
        return train_loader, None
    return train_loader, make_loader(validation[rank::world_size], batch_size=settings.batch_size // world_size)


def start_worker(worker_id):
    """Initialise a loader worker: it leaves signals to the main process and shares its memory.

    Ctrl-C and SIGTERM reach every process of the group, but only the main process decides, so the worker leaves the
    group. It must not ignore SIGTERM, by which Python ends workers at exit.
    """
    if hasattr(os, "setsid"):
        os.setsid()
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # a collection would write into every shared object: 47 MB per worker instead of 8 MB


def batches_of(loader):
    """Yield the batches of a DataLoader. Raises UserError if one of its workers was killed.

    DataLoader's SIGCHLD handler is removed: it would raise anywhere, even half-way through an optimizer step. The
    loader also finds a dead worker within 5 seconds while it waits for a batch.
    """
    try:
        batches = iter(loader)  # persistent workers are asked for the first batches here
        if hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        yield from batches
    # OSError and EOFError: the worker died between announcing a batch and sending it.
    except (RuntimeError, OSError, EOFError) as error:
        if not loader.num_workers or str(error).startswith("Caught "):  # an error inside a living worker
            raise
        raise UserError("a process that decodes images was killed, most often because memory ran out: lower "
                        "--num-workers") from None
