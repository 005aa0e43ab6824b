"""Fetching a file from the internet: whole, checked, and never over a good one."""
import hashlib
import urllib.request
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from utils.machine.errors import UserError
from utils.machine.files import atomic_write, write_text


def download(url, path, sha256=None):
    """Fetch `url` into `path` unless it is there already. -> its SHA-256, checked where `sha256` is given.

    Where it is not known the one found is written to <path>.sha256, and a later download must agree with it.
    Raises UserError, which says what to put where, without a network or with a file that is not the right one;
    `path` is then as it was.
    """
    path, record = Path(path), Path(f"{path}.sha256")
    expected = sha256 or read_record(record)
    right = "the published file" if sha256 else f"the one recorded in {record}"
    if path.is_file():
        return check_hash(path, expected, f"{path} is not {right}: remove it and try again")
    by_hand = f"or download {url} elsewhere and put it at {path}"
    with atomic_write(path) as temporary:
        with open(temporary, "wb") as file:
            for block in receive(url, path.name, f"try again with a network, {by_hand}"):
                file.write(block)
        found = check_hash(temporary, expected, f"what came from {url} is not {right}: try again, {by_hand}")
    if expected is None:
        write_text(record, f"{found}  {path.name}\n")  # the format of sha256sum
    return found


def receive(url, name, remedy):
    """Yield the content of `url` in blocks, behind a progress bar called `name`. Raises UserError unless all comes."""
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            size = int(answer.headers.get("Content-Length") or 0)
            with tqdm(desc=name, total=size or None, unit="B", unit_scale=True, disable=None) as bar:
                received = 0
                while block := answer.read(1 << 20):
                    received += len(block)
                    bar.update(len(block))
                    yield block
        if received < size:
            raise ConnectionError(f"{received} of {size} bytes came")
    except (OSError, ValueError, HTTPException) as error:  # URLError, timeouts and resets are OSErrors
        reason = " ".join(str(error).split()) or type(error).__name__  # a server's own words may hold line ends
        raise UserError(f"cannot download {url} ({reason}): {remedy}") from None


def read_record(path):
    """The hash that a sha256sum file begins with, or None where there is no such file."""
    words = path.read_text(encoding="utf-8", errors="replace").split() if path.is_file() else []
    return words[0] if words else None


def hash_file(path):
    """The SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_hash(path, expected, message):
    """-> the SHA-256 of the file. Raises UserError where another is expected."""
    found = hash_file(path)
    if expected and found != expected.lower():
        raise UserError(f"{message} (its SHA-256 is {found} instead of {expected})")
    return found
