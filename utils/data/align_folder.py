"""A folder tree of photographs, one folder per person, to the same tree of aligned crops."""
import csv
import io
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from utils.common.device import available_cores
from utils.common.errors import UserError
from utils.common.files import atomic_write, read_lines, write_text
from utils.data.scan import list_folder, list_root, reason_of
from utils.faces.alignment import align, eye_distance
from utils.faces.images import open_image

LEAST_EYE_DISTANCE = 18  # pixels, half of that in a crop: with fewer the crop is enlarged more than twice
NO_FACE, SEVERAL, SMALL = "no face", "several faces", f"fewer than {LEAST_EYE_DISTANCE} pixels between the eyes"
RULE = "of several faces the one of the largest area - 2 (distance from the middle)^2"


def align_folder(source, destination, detector, progress):
    """Write an aligned 112x112 crop of every picture in <source>/<person>/ to <destination>/<person>/.

    Nothing in the source is written to. A crop that is there already stays as it is, so an interrupted run goes on
    where it was; so does the report, report_path(destination), whose remarks it keeps.
    progress: wraps an iterable, such as tqdm; called as progress(iterable, total=count).
    -> (number of crops written, number there before, remarks {name within the source: remark}). Raises UserError
    where one folder lies within the other, or the source is none.
    """
    source, destination = (Path(os.path.abspath(folder)) for folder in (source, destination))
    check_apart(source, destination)
    identities, skipped = list_root(source)
    candidates = []
    for folder in chain.from_iterable(identities.values()):
        found, others = list_folder(folder)
        candidates += map(Path, found)
        skipped += others
    taken = {crop_path(path, source, destination) for path in candidates if path.suffix == ".jpg"}
    todo, remarks, before = [], {name_in(path, source): f"left out: {why}" for path, why in skipped}, 0
    known = read_report(destination)
    for path in candidates:
        name, crop = name_in(path, source), crop_path(path, source, destination)
        if path.suffix != ".jpg" and crop in taken:
            remarks[name] = f"left out: its crop would be called {crop.name}, as another picture is"
        elif crop.is_file():
            before += 1
            remarks |= {name: known[name]} if name in known else {}
        else:
            todo.append((path, crop))

    written, pool = 0, ThreadPoolExecutor(available_cores())  # Pillow and OpenCV work outside the interpreter lock
    try:
        found = pool.map(lambda paths: align_file(*paths, detector), todo)
        for (path, crop), remark in zip(todo, progress(found, total=len(todo))):
            if remark:
                remarks[name_in(path, source)] = remark
            written += crop.is_file()
    finally:  # also on Ctrl-C
        pool.shutdown(cancel_futures=True)
        write_report(remarks, destination)
    return written, before, remarks


def align_file(path, crop_path, detector):
    """Write the crop of one photograph. -> a remark, "" where there is nothing to say."""
    try:
        image = open_image(path)
    except UserError as error:
        return "left out: " + reason_of(error, path)
    image, faces, turned = detector.detect_upright(image)
    if not faces:
        return f"left out: {NO_FACE}"
    landmarks = detector.refine(image, faces[0]).landmarks
    # JPEG: a third of a PNG's bytes, and it moves the embedding by 0.04 where the landmarks leave 0.3 open.
    with atomic_write(crop_path) as temporary:
        align(image, landmarks).save(temporary, format="jpeg", quality=95, subsampling=0)
    remarks = {f"turned by {turned} degrees clockwise": turned, SEVERAL: len(faces) > 1,
               SMALL: eye_distance(landmarks) < LEAST_EYE_DISTANCE}
    return "; ".join(remark for remark, applies in remarks.items() if applies)


def check_apart(source, destination):
    """Raises UserError where the crops could come to lie among the originals, or the originals among the crops."""
    first, second = source.resolve(), destination.resolve()
    if first == second or first in second.parents or second in first.parents:
        raise UserError(f"--align-to {destination} and {source} lie in one another: give a folder apart from the "
                        "originals")


def crop_path(path, source, destination):
    """a.jpg keeps its name and a.png becomes a.png.jpg, so that both have a crop."""
    name = path.name if path.suffix == ".jpg" else f"{path.name}.jpg"
    return destination / path.parent.relative_to(source) / name


def name_in(path, source):
    # A name that is no valid Unicode can still be told.
    return Path(path).relative_to(source).as_posix().encode(errors="backslashreplace").decode()


def report_path(destination):
    """faces/ -> faces_alignment.csv, beside it: a file within would be taken for a stray one."""
    return Path(f"{os.path.abspath(destination)}_alignment.csv")


def write_report(remarks, destination):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("picture", "remark"), *sorted(remarks.items())])
    write_text(report_path(destination), text.getvalue())


def read_report(destination):
    """The remarks of an earlier run, {} where there was none."""
    path = report_path(destination)
    if not path.is_file():
        return {}
    rows = csv.reader(line + "\n" for line in read_lines(path, ""))
    return {row[0]: row[1] for row in rows if len(row) == 2}
