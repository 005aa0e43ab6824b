"""A folder of one folder per person, looked through: what is a picture, which of them decode, what else is there."""
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from utils.common.device import available_cores
from utils.common.errors import UserError
from utils.common.files import is_folder
from utils.common.stderr import caught_stderr
from utils.data.bad_pictures import reason_of
from utils.data.records import NOTE
from utils.faces.face_crop import looks_aligned
from utils.faces.images import EXTENSIONS, describe_unread, extension, open_image

PART = 256   # pictures that are decoded by one process at a time
FEW = 512    # pictures that are decoded before there are such processes
AHEAD = 8    # parts a process that may wait for one before them
NESTED = "a folder inside a person's folder"
BESIDE = "a file beside the person folders"


class Person(NamedTuple):
    """What is in a person's folder; `skipped` and `damaged` are [(path, reason)]."""
    name: str
    pictures: list        # their paths, sorted; all decode
    skipped: list         # everything that was left out
    damaged: list         # of the pictures, those of which libjpeg could not read all
    unaligned: list       # of the pictures, those larger than an aligned crop
    changed: int | None   # changed_at() of the folder before it was listed


def list_root(root):
    """-> (names of the person folders, sorted; [(path, reason)] of everything else).

    Raises UserError where root is no folder.
    """
    if not os.path.isdir(root):
        raise UserError(f"{root} is not a folder: make one folder per person in it, or give --datasets-path")
    if unwritable(str(root)):
        raise UserError(f"{str(root)!a} has {unwritable(str(root))}: give the folder another")
    names, skipped = [], []
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        reason = BESIDE if not is_folder(entry) else unwritable(entry.name) or (
            "a hidden folder" if entry.name.startswith(".") else None)
        if entry.name == NOTE:
            continue
        skipped.append((entry.path, reason)) if reason else names.append(entry.name)
    return names, skipped


def list_folder(folder):
    """-> (paths that are pictures by their names, [(path, reason)] of everything else), both sorted."""
    candidates, skipped = [], []
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        return [], [(folder, f"cannot be read ({error.strerror})")]
    for entry in entries:
        if is_folder(entry):
            reason = NESTED
        elif entry.name.startswith(".") or extension(entry.name) not in EXTENSIONS:
            reason = "not a picture by its extension"
        else:
            reason = unwritable(entry.name)
        skipped.append((entry.path, reason)) if reason else candidates.append(entry.path)
    return candidates, skipped


def changed_at(folder):
    """When a file was last added to a folder or removed, in ns; None for one that is not to be read."""
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return None


def unwritable(name):
    """Why a name cannot stand in a line of UTF-8 text, or None."""
    if "\n" in name or "\r" in name:
        return "a line break in the name"
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "a name that is not valid Unicode"


def scan_people(root, names, progress, check=True):
    """Yield the Person of each of these folders in root, in their order, while the next ones are decoded.

    progress: called as progress(total=folders), such as tqdm; has update and set_postfix_str.
    check: decode every picture, so that training never meets a bad one.
    Raises UserError where a process that decodes is killed.
    """
    waiting, seen, parts, most = deque(), 0, 0, AHEAD * available_cores() if check else 0
    with decoders() as decode, progress(total=len(names)) as bar:
        for number, name in enumerate(names, 1):
            folder = os.path.join(root, name)
            changed = changed_at(folder)
            candidates, skipped = list_folder(folder)
            cut = [candidates[start:start + PART] for start in range(0, len(candidates), PART)] if check else []
            waiting.append((folder, changed, candidates, skipped, [decode(part) for part in cut]))
            parts, seen = parts + len(cut), seen + len(candidates)
            while waiting and (parts >= most or number == len(names) or all(part.done() for part in waiting[0][-1])):
                parts -= len(waiting[0][-1])
                yield judge(*waiting.popleft())
                bar.set_postfix_str(f"{seen} pictures", refresh=False)
                bar.update(1)


@contextmanager
def decoders():
    """Yields decode(paths) -> the Future of examine(paths); the first FEW are examined at once, in this process."""
    pool, left = None, FEW

    def decode(paths):
        nonlocal pool, left
        if left > 0:
            left -= len(paths)
            done = Future()
            done.set_result(examine(paths))
            return done
        if pool is None:
            pool = ProcessPoolExecutor(available_cores(), initializer=start_decoder)
        return pool.submit(examine, paths)

    try:
        yield decode
    except BrokenProcessPool:
        raise UserError("a process that decodes pictures was killed, most often for want of memory: run it again, "
                        "with --no-check if they are known to be good") from None
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)


def start_decoder():
    """In a process that decodes: one thread, Ctrl-C is the main process's affair, and it never outlives that one."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=leave_with_parent, daemon=True).start()


def leave_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def examine(paths):
    """-> for each path (why it does not decode or None, libjpeg's warning or "", whether it looks aligned)."""
    from utils.data.dataset import decode_color_jpeg  # which imports this module
    found = []
    for path in paths:
        with caught_stderr() as printed:
            try:
                pixels = decode_color_jpeg(path)
                size = open_image(path).size if pixels is None else (pixels.shape[1], pixels.shape[0])
                reason, aligned = None, looks_aligned(size)
            except UserError as error:
                reason, aligned = reason_of(error, path), True
        warning = " ".join(printed.text.split()) if "JPEG" in printed.text else ""  # libtiff's are of no account
        found.append((reason, warning, aligned))
    return found


def judge(folder, changed, candidates, skipped, futures):
    """What was listed in a folder, and the Futures of what was examined of it (none where nothing is) -> Person."""
    found = [one for future in futures for one in future.result()] or [(None, "", True)] * len(candidates)
    bad = [(path, reason) for path, (reason, _, _) in zip(candidates, found) if reason]
    good = [path for path, (reason, _, _) in zip(candidates, found) if reason is None]
    damaged = [(path, warning) for path, (reason, warning, _) in zip(candidates, found) if warning and reason is None]
    unaligned = [path for path, (_, _, aligned) in zip(candidates, found) if not aligned]
    nobody = [] if good else [(folder, "a person with no picture")]
    return Person(os.path.basename(folder), good, skipped + bad + nobody, damaged, unaligned, changed)


class Tally:
    """What a scan has seen so far, and what a user is to be told of it in the end."""

    def __init__(self, root, strays):
        """strays: the second of list_root."""
        self.root, self.strays = root, [path for path, _ in strays]
        self.per_person = []  # how many pictures
        self.skipped, self.damaged, self.unaligned = len(strays), 0, 0
        self.nested, self.endings, self.example = [], Counter(), None

    def add(self, person):
        if person.pictures:
            self.per_person.append(len(person.pictures))
        self.skipped += len(person.skipped)
        self.damaged += len(person.damaged)
        self.unaligned += len(person.unaligned)
        self.example = self.example or next(iter(person.unaligned), None)
        self.nested += [path for path, reason in person.skipped if reason == NESTED][:1]
        self.endings.update(extension(path) for path, _ in person.skipped)

    def hints(self):
        """-> lines on what looks like a mistake."""
        pictures = sum(self.per_person)
        if self.nested:
            yield (f"{len(self.nested)} of the person folders hold folders, {self.nested[0]} first: if those are the "
                   f"people's, give --datasets-path {Path(self.nested[0]).parent}")
        beside = [path for path in self.strays if extension(path) in EXTENSIONS]
        if beside:
            yield (f"{len(beside)} pictures lie in {self.root} itself, {Path(beside[0]).name} first: each needs the "
                   "folder of its person; if they are one person's, give the folder above")
        if left_out := describe_unread(self.endings):
            yield left_out
        if self.damaged:
            yield f"{self.damaged} damaged pictures decode in part and are listed: look at them, replace or remove them"
        if self.unaligned > pictures / 2:
            yield (f"{self.unaligned} of {pictures} pictures are larger than aligned crops, {self.example} first: if "
                   "they are photographs, write aligned crops of them first, with --align-to")
