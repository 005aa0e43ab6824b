"""Fetching a file from the internet: whole, checked, and never over a good one."""
import hashlib
import shutil
import urllib.request
from contextlib import closing
from pathlib import Path

from tqdm import tqdm

from utils.errors import UserError
from utils.files import atomic_write, write_text


def download(url, path, sha256=None):
    """Fetch `url` into `path` unless it is there already. -> its SHA-256, checked where `sha256` is given.

    Where it is not known the one found is written to <path>.sha256, and a later download must agree with it.
    Raises UserError, which says what to put where, without a network or with a file that is not the right one;
    `path` is then as it was.
    """
    path, record = Path(path), Path(f"{path}.sha256")
    if sha256 is None and record.is_file():
        sha256 = record.read_text(encoding="utf-8").split()[0]
    if path.is_file():
        return check_hash(path, sha256, f"{path} is not the published file: remove it and try again")
    by_hand = f"or download {url} elsewhere and put it at {path}"
    with atomic_write(path) as temporary:
        fetch(url, temporary, path.name, by_hand)
        found = check_hash(temporary, sha256, f"what came from {url} is not the published file: try again, {by_hand}")
    if sha256 is None:
        write_text(record, f"{found}  {path.name}\n")
    return found


def fetch(url, path, name, by_hand):
    try:
        with closing(urllib.request.urlopen(url, timeout=30)) as answer, open(path, "wb") as file:
            size = int(answer.headers.get("Content-Length") or 0)
            with tqdm.wrapattr(answer, "read", total=size or None, desc=name, unit="B", unit_scale=True,
                               disable=None) as content:
                shutil.copyfileobj(content, file)
        if size and path.stat().st_size != size:
            raise ConnectionError(f"{path.stat().st_size} of {size} bytes came")
    except (OSError, ValueError) as error:  # URLError, timeouts and cut connections are OSErrors
        raise UserError(f"cannot download {url} ({error}): try again with a network, {by_hand}") from None


def hash_file(path):
    """The SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_hash(path, expected, message):
    """-> the SHA-256 of the file. Raises UserError where another is expected."""
    found = hash_file(path)
    if expected and found != expected.lower():
        raise UserError(f"{message} (its SHA-256 is {found} instead of {expected})")
    return found
