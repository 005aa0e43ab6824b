"""Files that are pictures by their names and are not read here, so that nobody misses them in silence."""
import os

from utils.faces.images import EXTENSIONS

OTHER_PICTURES = {".arw", ".avif", ".cr2", ".cr3", ".dng", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".nef", ".orf",
                  ".pef", ".pgm", ".ppm", ".psd", ".raf", ".raw", ".rw2", ".svg", ".tga"} - EXTENSIONS


def ending(name):
    return os.path.splitext(name)[1].lower()


def describe_left_out(endings):
    """How many files of each ending were left out -> a line on the pictures among them, None where there are none."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(endings.items()) if kind in OTHER_PICTURES)
    if kinds:
        return f"left out, for their formats are not read: {kinds}: save them as .jpg or .png"
