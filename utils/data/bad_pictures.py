"""The pictures that did not open in a run: each costs one picture, and too many of them cost the run."""
import csv
import io
from pathlib import Path
from typing import NamedTuple

from utils.common import distributed
from utils.common.errors import UserError
from utils.common.files import read_lines, write_text

FILE = "bad_pictures.csv"
MOST_PRINTED = 10


class BadPicture(NamedTuple):
    picture: str
    label: int
    reason: str
    replaced_by: str


def reason_of(error, path):
    """open_image's UserError -> what is wrong, without the path and the remedy."""
    return str(error).removeprefix(f"{path} ").rpartition(":")[0]


def most_allowed(pictures, largest_share):
    """How many of so many pictures may be bad: the share, and one at least unless it is 0."""
    return max(1, int(pictures * largest_share)) if largest_share else 0


class BadPictures:
    """Those of one run, {path: BadPicture}, also in <folder>/bad_pictures.csv, which a resumed run goes on with.

    pictures: how many there are to train on. largest_share: see most_allowed.
    """

    def __init__(self, folder, pictures, largest_share):
        self.path, self.found = Path(folder, FILE), {}
        self.most, self.pictures = most_allowed(pictures, largest_share), pictures
        if self.path.is_file():
            rows = list(csv.reader(line + "\n" for line in read_lines(self.path, "")))[1:]
            self.found = {path: BadPicture(path, int(label), *others) for path, label, *others in rows}

    def refusal(self, bad):
        """What note() raises, or None."""
        try:
            self.note(bad)
        except UserError as error:
            return error

    def note(self, bad):
        """Add the BadPictures that this process met. Every process has to call it; rank 0 writes.

        Raises UserError, in every process, beyond the share.
        """
        met = [one for of_process in distributed.gather(bad) for one in of_process]
        new = {one.picture: one for one in met if one.picture not in self.found}
        for one in list(new.values())[:max(0, MOST_PRINTED - len(self.found))]:
            print(f"{one.picture} {one.reason}: {one.replaced_by} stands in (see {self.path})", flush=True)
        self.found |= new
        if new and distributed.is_main():
            self.write()
        if met and len(self.found) > self.most:
            first = next(iter(self.found.values()))
            raise UserError(f"{len(self.found)} of {self.pictures} pictures do not open, {first.picture} first "
                            f"({first.reason}), all are in {self.path}: mend them, or raise --max-bad-pictures")

    def write(self):
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([BadPicture._fields, *self.found.values()])
        write_text(self.path, text.getvalue())
