"""Labeled Faces in the Wild by way of scikit-learn: its addresses, its checksums, its folder."""
import shutil
import tarfile
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from utils.common.device import available_cores
from utils.common.errors import UserError, first_line
from utils.common.files import atomic_write

FOLDERS = {"original": "lfw", "funneled": "lfw_funneled"}
ARCHIVES = {"original": "lfw.tgz", "funneled": "lfw-funneled.tgz"}


def fetch_lfw(variant):
    """-> the folder of the original or the funneled pictures, <Person>/<Person>_0001.jpg, 250x250, not aligned.

    It is scikit-learn's own, lfw_home/lfw or lfw_home/lfw_funneled in SCIKIT_LEARN_DATA (~/scikit_learn_data), taken
    as it is where it is there. Raises UserError, which says what to put where, when it is not and cannot be fetched.
    """
    from sklearn.datasets import fetch_lfw_people, get_data_home
    try:
        folder = Path(get_data_home(), "lfw_home", FOLDERS[variant])  # makes the first of these
    except OSError as error:
        raise UserError(f"cannot make scikit-learn's folder ({error}): set SCIKIT_LEARN_DATA to another") from None
    if folder.is_dir():
        return folder
    print(f"fetching {ARCHIVES[variant]} (about 200 MB) by scikit-learn into {folder.parent}", flush=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about every attempt that fails
            # The public way to the archive, which goes on to read the people with that many pictures. There are none,
            # which it calls a ValueError; reading all 13,233 pictures would take half a minute and 150 MB for nothing.
            fetch_lfw_people(funneled=variant == "funneled", min_faces_per_person=100_000)
    except ValueError:
        pass
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)  # scikit-learn would take what is unpacked in part for the whole
        if not isinstance(error, OSError | EOFError | tarfile.TarError | zlib.error):
            raise
        raise UserError(f"cannot fetch LFW ({first_line(error)}): try again with a network, or unpack "
                        f"{ARCHIVES[variant]} from elsewhere so that {folder} holds <Person>/<Person>_0001.jpg and so "
                        "on") from None
    if not folder.is_dir():
        raise UserError(f"{ARCHIVES[variant]} did not unpack to {folder}: unpack it there by hand")
    return folder


def align_lfw(paths, folder, crop, progress):
    """Write the aligned crops of original LFW pictures to <folder>/<Person>/<Person>_0001.jpg and so on.

    crop: from a path to a PIL image, such as lfw.SubjectCrop. What is there already is kept, so an interrupted run
    goes on. progress: called as progress(iterable, total=count), such as tqdm.
    """
    def write(path):
        target = Path(folder, path.parent.name, path.name)
        if not target.is_file():
            with atomic_write(target) as temporary:
                crop(path).save(temporary, format="jpeg", quality=95, subsampling=0)

    with ThreadPoolExecutor(available_cores()) as pool:
        for _ in progress(pool.map(write, paths), total=len(paths)):
            pass
