"""Photos to aligned crops: a tree with one folder per identity, written again as 112x112 crops."""
import csv
import io
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from utils.common.device import available_cores
from utils.common.errors import UserError
from utils.common.files import atomic_write, hash_file, identity_name, write_text
from utils.data.scan import list_root, reason_of, scan_identities
from utils.faces.face_crop import FaceCrop, shared_detector


def align_folder(source, destination):
    """Write a crop of every photo in <source>/<identity>/ to <destination>/<identity>/, and report_path(destination).

    A crop's JPEG comment is the SHA-256 of its photo and the remark on it. Run again, a crop is kept if its photo is
    unchanged, and removed if its photo is gone. Files without such a comment are never touched.

    Returns the numbers of "written", "kept", "removed" and "left out" files.
    Raises UserError if the folders overlap, if no photo or no detector is found, or if all crops are of other photos.
    """
    source, destination = Path(os.path.abspath(source)), Path(os.path.abspath(destination))
    first, second = source.resolve(), destination.resolve()
    if first.is_relative_to(second) or second.is_relative_to(first):
        raise UserError(f"--align-to {destination} and {source} are inside one another: give a folder apart from the "
                        "photos")
    photos, remarks = list_photos(source)
    crops = {destination / photo.parent.name / f"{photo.name.removesuffix('.jpg')}.jpg": photo for photo in photos}
    for photo in {*photos} - {*crops.values()}:
        remarks[photo] = "left out: its crop would have the name of another one"
    expected = {identity_name(str(crop)) for crop in crops}  # a Mac's disk may list them in another Unicode form
    found = {path: identity_name(str(path)) in expected for path in destination.glob("*/*")}
    orphans = [path for path, is_expected in found.items() if not is_expected and read_comment(path)]
    if orphans and not any(found.values()):
        raise UserError(f"{destination} holds the crops of other photos: give --align-to another folder, or remove it")
    counts = Counter({"left out": len(remarks)}, removed=len(orphans))
    shared_detector()  # raises here, and not for each photo
    for orphan in orphans:  # first: without case, a crop may lie where its renamed photo needs one
        orphan.unlink()
        remarks[source / orphan.relative_to(destination)] = "the photo is gone, its crop is removed"
    with ThreadPoolExecutor(available_cores()) as pool:  # Pillow and OpenCV release the interpreter lock
        results = pool.map(align_photo, crops.values(), crops)
        for photo, (outcome, remark) in zip(crops.values(), tqdm(results, "aligning", len(crops), disable=None)):
            counts[outcome] += 1
            if remark:
                remarks[photo] = remark

    report = io.StringIO()
    rows = sorted((path.relative_to(source).as_posix(), remark) for path, remark in remarks.items())
    csv.writer(report, lineterminator="\n").writerows([("photo", "remark"), *rows])
    write_text(report_path(destination), report.getvalue().encode(errors="backslashreplace").decode())
    return counts


def list_photos(source):
    """Return (sorted paths of the photos, {path: why it is left out} of everything else)."""
    identities, skipped = list_root(source)
    photos = []
    for identity in scan_identities(identities, check=False):
        photos += map(Path, identity.images)
        skipped += identity.skipped
    if not photos:
        reasons = f" ({len(skipped)} skipped, the first: {': '.join(skipped[0])})" if skipped else ""
        raise UserError(f"{source} holds no photo{reasons}: make one folder of photos per person in it")
    return photos, {Path(path): f"left out: {reason}" for path, reason in skipped}


def align_photo(photo, crop):
    """Write the crop of one photo if needed. Return what was done, see align_folder, and a remark or ""."""
    written_from, remark = read_comment(crop) or (None, "")
    if not written_from and crop.is_file():
        return "left out", f"left out: {crop} is not by --align-to"
    try:
        sha256 = hash_file(photo)
        if sha256 == written_from:
            return "kept", remark
        face = FaceCrop(align=True).find(photo)
    except (OSError, UserError) as error:
        crop.unlink(missing_ok=True)
        return "left out", f"left out: {reason_of(error, photo)}"
    remark = "; ".join(face.remarks)
    # JPEG has a third of a PNG's bytes. It moves the embedding by 0.04, where the landmarks are uncertain by 0.3.
    with atomic_write(crop) as temporary:
        face.crop.save(temporary, format="jpeg", quality=95, subsampling=0, comment=f"{sha256} {remark}".encode())
    return "written", remark


def read_comment(crop):
    """Return (SHA-256 of the photo, remark) of a crop that align_photo wrote, else None."""
    try:
        with Image.open(crop) as image:
            sha256, _, remark = image.info["comment"].decode().partition(" ")
    except (OSError, KeyError, UnicodeDecodeError, AttributeError):  # a PNG's comment is a str
        return None
    return (sha256, remark) if len(sha256) == 64 else None


def report_path(destination):
    """Return the path of the remarks: faces/ -> faces_alignment.csv, beside it."""
    return Path(f"{os.path.abspath(destination)}_alignment.csv")
