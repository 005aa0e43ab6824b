"""Finding, reading, writing, hashing and downloading files. An interrupted run never leaves half of one."""
import functools
import hashlib
import os
import re
import secrets
import sys
import time
import unicodedata
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

import torch

from utils.common.errors import UserError, first_line

REPOSITORY = Path(__file__).resolve().parents[2]
A_DAY = 24 * 3600


def locate(path):
    """Return `path`, or the repository's file of that name if the working folder has no such file under model_data/.

    So the scripts and Arcface work from any folder.
    """
    path = Path(path)
    if path.exists() or path.parts[:1] != ("model_data",) or Path.cwd() == REPOSITORY:
        return path
    return REPOSITORY / path


def identity_name(folder_name):
    """Return the name of an identity, in Unicode's NFC: two folders whose names differ in NFC and NFD alone are one."""
    return unicodedata.normalize("NFC", folder_name)


def is_folder(entry):
    """Return whether an entry of os.scandir is a folder or a link to one. A link to itself is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


@contextmanager
def atomic_write(path):
    """Yield a temporary path beside `path`, which replaces `path` when the block succeeds and is removed if it fails.

    The old file stays whole until the new one is on the disk, also through a power cut. Raises UserError if the file
    cannot be written.
    """
    path = Path(path)
    if not path.name:
        raise UserError(f"cannot write {str(path)!r}: that is no file name")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")  # unique among computers and threads too
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        yield temporary
        with open(temporary, "r+b") as file:  # Windows does not sync a file that is open for reading
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@functools.cache
def remove_leftovers(folder):
    """Remove temporary files of killed processes that are older than a day from a folder, once per process."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if re.fullmatch(r"\..+\.[0-9a-f]+\.tmp(\.[0-9a-f]+\.partial)?", entry.name, re.DOTALL):
                with suppress(OSError):
                    if time.time() - entry.stat().st_mtime > A_DAY:
                        os.unlink(entry)


def write_text(path, text):
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def read_lines(path, remedy):
    """Return the lines of a UTF-8 text file without their ends. Raises UserError if it cannot be read."""
    try:  # splitlines() would also cut at U+2028 and form feeds, which a file name may hold
        return Path(path).read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: {remedy}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} as UTF-8 text: {error}") from None


def hash_file(path):
    """Return the SHA-256 of a file as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(url, path, sha256=None, check=None):
    """Fetch `url` into `path` unless that file exists, and compare its SHA-256.

    check: for a file whose hash is not known; called with the temporary file's path, it raises UserError to reject it.
    Raises UserError if the file cannot be fetched or is another one; `path` is then unchanged.
    """
    path = Path(path)
    if path.is_file():
        if sha256 and hash_file(path) != sha256:
            raise UserError(f"{path} is not the published file (its SHA-256 is not {sha256}): remove it and try again")
        return
    remedy = f"try again with a network, or download {url} elsewhere and put it at {path}"
    with atomic_write(path) as temporary:
        try:
            torch.hub.download_url_to_file(url, temporary, hash_prefix=sha256, progress=sys.stderr.isatty())
        except (OSError, RuntimeError, ValueError, HTTPException) as error:
            raise UserError(f"cannot download {url} ({first_line(error)}): {remedy}") from None
        try:
            if check:
                check(temporary)
        except UserError as error:
            raise UserError(f"what came from {url} is not the file ({first_line(error)}): {remedy}") from None
