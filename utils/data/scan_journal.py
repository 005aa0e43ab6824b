"""A scan that is interrupted goes on where it was: what is known of each person is a line of a file beside the list."""
import json
import os
from pathlib import Path

from utils.common.errors import UserError
from utils.data.scan import Person, changed_at


def journal_path(annotation_path):
    return Path(f"{annotation_path}.scan")


def scan_on(root, names, path, settings, scan):
    """Yield the Person of each of the names: those that the journal at `path` tells of, then those of scan(the others).

    The latter are added to it. settings: what a line depends on beside the folder; with others, and from the first
    folder on that has changed since, all is scanned anew. Whoever calls removes the journal when its work is done.
    """
    head = [root, settings]
    known, length = count_known(root, names, path, head)
    try:
        with open(path, "r+b" if length else "w+b") as file:
            if known:
                print(f"{known} of {len(names)} people are known from a scan that was interrupted (remove {path} to "
                      "begin anew)", flush=True)
                next(file)
                for _ in range(known):
                    yield decode(next(file), root)
            else:
                file.write(encode(head))
            file.seek(length if known else file.tell())
            file.truncate()
            for person in scan(names[known:]):
                file.write(encode([person.name, person.changed, [os.path.basename(one) for one in person.pictures],
                                   *person[2:5]]))
                file.flush()
                yield person
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def count_known(root, names, path, head):
    """-> (how many of the names, from the first on, a journal tells of as they are now; where in it they end)."""
    known, length = 0, 0
    try:
        with open(path, "rb") as file:
            for line in file:
                fields = json.loads(line)  # ValueError for a line that was cut off
                if length and (known == len(names) or fields[:2] != [
                        names[known], changed_at(os.path.join(root, names[known]))]):
                    break
                if not length and fields != head:
                    break
                known, length = known + bool(length), length + len(line)
    except (OSError, ValueError):
        pass
    return known, length


def encode(fields):
    return json.dumps(fields).encode("ascii") + b"\n"


def decode(line, root):
    name, changed, pictures, *others = json.loads(line)
    skipped, damaged, unaligned = others
    return Person(name, [os.path.join(root, name, picture) for picture in pictures], [tuple(one) for one in skipped],
                  [tuple(one) for one in damaged], unaligned, changed)
