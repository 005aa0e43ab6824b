"""Image files to the network's input: the one decoding and preprocessing of training, evaluation and prediction."""
import io
import logging
import math
import os
import threading
import warnings
from collections import Counter
from contextlib import suppress

import numpy as np
from PIL import ExifTags, Image, ImageFile

from utils.common.errors import UserError, first_line

# The formats that Pillow may detect: by default it would hand a PostScript file to Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF", "AVIF")
EXTENSIONS = {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".webp", ".tif", ".tiff", ".avif"}
GRAY = (128, 128, 128)

# The transpose for each EXIF orientation. ImageOps.exif_transpose() would also rewrite the EXIF, and fail if that is
# damaged.
TRANSPOSE = Image.Transpose
EXIF_TRANSPOSES = {2: TRANSPOSE.FLIP_LEFT_RIGHT, 3: TRANSPOSE.ROTATE_180, 4: TRANSPOSE.FLIP_TOP_BOTTOM,
                   5: TRANSPOSE.TRANSPOSE, 6: TRANSPOSE.ROTATE_270, 7: TRANSPOSE.TRANSVERSE, 8: TRANSPOSE.ROTATE_90}

# Threads may share a PIL image, and decoding moves the position in its file.
READ_LOCK = threading.Lock()

# Every image decodes or is a UserError that names it. Pillow's own warnings name no file.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())


def open_image(source):
    """Return an upright RGB PIL image.

    source: a path, an open binary file, a PIL image, or a uint8 array, RGB (H, W, 3), RGBA (H, W, 4) or gray (H, W).
    OpenCV's arrays are BGR: give `image[:, :, ::-1]`.
    The EXIF orientation is applied to files, and to PIL images as Image.open() returns them. The result of rotate() or
    convert() is not rotated again, although it may still carry the tag.

    Raises UserError, which names the file, if it does not decode, and TypeError if the source is no image.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim < 2 or source.shape[2:] not in ((), (3,), (4,)) or not source.size:
            raise TypeError("an image array must be uint8, RGB (H, W, 3), RGBA (H, W, 4) or gray (H, W), not "
                            f"{source.dtype} {source.shape}; for OpenCV's BGR give image[:, :, ::-1]")
        source = Image.fromarray(source)
    if isinstance(source, (str, os.PathLike)):
        if not os.path.isfile(source):  # a pipe would block when opened
            raise UserError(f"{source} is not a file: give the path of an image")
    elif not isinstance(source, Image.Image) and not hasattr(source, "read"):
        raise TypeError(f"an image is a path, an open file, a PIL image or an array, not {type(source).__name__}")
    try:
        if isinstance(source, Image.Image):
            with READ_LOCK:
                return to_rgb(source)
        # Pillow alone decodes. torchvision's decode_jpeg(apply_exif_orientation=True) is 9% faster at 112x112 pixels,
        # but it ignores an orientation in XMP and misreads damaged EXIF.
        with Image.open(source, formats=FORMATS) as image:
            return to_rgb(image)
    except Image.UnidentifiedImageError:
        reason = "not an image, or in a format that is not read, such as HEIC"
    except Exception as error:  # Pillow raises almost anything for a damaged image
        reason = first_line(error)
    raise UserError(f"{image_name(source)} does not decode ({reason}): convert, replace or remove it")


def image_name(source):
    """Return the name of an image in messages."""
    if isinstance(source, (str, os.PathLike)):
        return str(source)
    return getattr(source, "filename", None) or "the image"


def to_rgb(image):
    """Return any PIL image as RGB, upright. 16-bit gray is scaled to 8 bits and transparency becomes gray."""
    image.load()  # before its EXIF is read: TIFF transposes itself, and a PNG's EXIF may follow its pixels
    if isinstance(image, ImageFile.ImageFile):
        with suppress(Exception):  # no orientation, or a damaged block: other programs show such an image as it is
            image = image.transpose(EXIF_TRANSPOSES[image.getexif()[ExifTags.Base.Orientation]])
    if image.mode.startswith("I"):  # convert() would clip 16 bits to white
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*GRAY, 255)), image)
    return image.convert("RGB")


def resize(image, input_shape, letterbox):
    """Resize an RGB PIL image to input_shape (height, width). The letterbox keeps the aspect and pads with gray."""
    height, width = input_shape[:2]
    if image.size == (width, height):
        return image
    if not letterbox:
        return image.resize((width, height), Image.Resampling.BICUBIC)
    if image.width * height >= image.height * width:  # in integers: int(55 * (112 / 55)) is 111
        inner = width, max(1, image.height * width // image.width)
    else:
        inner = max(1, image.width * height // image.height), height
    canvas = Image.new("RGB", (width, height), GRAY)
    canvas.paste(image.resize(inner, Image.Resampling.BICUBIC), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return canvas


def preprocess(source, input_shape=(112, 112), letterbox=True):
    """Decode and resize what open_image takes. Returns a uint8 array (height, width, 3) for `normalise`."""
    return np.array(resize(open_image(source), input_shape, letterbox))


def normalise(images):
    """Return a uint8 tensor (B, H, W, 3) as float32 (B, 3, H, W) in [-1, 1], channels last in memory."""
    return (images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def check_input_shape(input_shape):
    """Raise UserError unless (height, width) ends as the 7x7 feature map that the networks embed."""
    if [math.ceil(size / 16) for size in input_shape[:2]] != [7, 7]:
        raise UserError(f"input shape {list(input_shape)}: the networks take 112x112 images (97 to 112 a side)")


def extension(path):
    return os.path.splitext(path)[1].lower()


def describe_unread(names):
    """Return a line that counts the files that are not read, by extension; None if all are images."""
    unread = Counter(extension(name) or "without extension" for name in names if extension(name) not in EXTENSIONS)
    if unread:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(unread.items()))
        return f"left out, not read as images: {kinds}: convert images to JPEG or PNG"


class EncodedImage(io.BytesIO):
    """An image file's content from inside another file, with a name for messages."""

    def __init__(self, content, filename):
        super().__init__(content)
        self.filename = filename
