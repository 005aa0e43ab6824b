"""From a picture to the network's input: the one preprocessing of training, evaluation and prediction."""
import io
import logging
import math
import os
import re
import stat
import warnings

import numpy as np
from PIL import ExifTags, Image

from utils.common.errors import UserError, first_line

# What Pillow may take a file for, whatever its name is: by itself it hands a PostScript file to Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF", "AVIF")
EXTENSIONS = {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".webp", ".tif", ".tiff", ".avif"}
UNREAD_EXTENSIONS = {".arw", ".avif", ".cr2", ".cr3", ".dng", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".nef", ".orf",
                     ".pef", ".pgm", ".ppm", ".psd", ".raf", ".raw", ".rw2", ".svg", ".tga"} - EXTENSIONS
# Pictures that people have and that are not read here, by the first bytes. AVIF needs a Pillow that was built with it.
FOREIGN = {"HEIC": rb"....ftyp(he[iv]|.{,40}heic)", "AVIF": rb"....ftypavi", "JPEG XL": rb"\xff\x0a|....JXL ",
           "JPEG 2000": rb"....jP  |\xff\x4f\xff\x51", "PostScript": rb"%!PS|\xc5\xd0\xd3\xc6", "PDF": rb"%PDF"}
MOST_PIXELS = 128_000_000  # a phone's largest picture has 108 million; 0.4 GB once decoded
GRAY = (128, 128, 128)

# By EXIF's orientation, as Pillow's exif_transpose() has it. That one also writes the EXIF anew, and fails on a
# damaged block that reads well enough.
TURN = Image.Transpose
EXIF_TURNS = {2: TURN.FLIP_LEFT_RIGHT, 3: TURN.ROTATE_180, 4: TURN.FLIP_TOP_BOTTOM, 5: TURN.TRANSPOSE,
              6: TURN.ROTATE_270, 7: TURN.TRANSVERSE, 8: TURN.ROTATE_90}

# A picture decodes, or is a UserError that names it; what Pillow adds to that names no file.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())


def open_image(source):
    """A path, an open binary file, a PIL image or a uint8 array (H, W, 3) or (H, W) -> an upright RGB PIL image.

    Upright by its EXIF. Raises UserError, which names the file, where there is none, where it does not decode, and
    before decoding where it has more than MOST_PIXELS. Raises TypeError for what is no picture at all.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim not in (2, 3):
            raise TypeError(f"an image array must be uint8 (H, W, 3) or (H, W), not {source.dtype} {source.shape}")
        source = Image.fromarray(source)
    if isinstance(source, (str, os.PathLike)):
        check_is_file(source)
    elif not isinstance(source, Image.Image) and not hasattr(source, "read"):
        raise TypeError(f"a picture is a path, an open file, a PIL image or an array, not {source!r}")
    try:
        if isinstance(source, Image.Image):
            return to_rgb(source)
        Image.preinit()
        with Image.open(source, formats=FORMATS) as image:
            return to_rgb(image)
    except Exception as error:  # Pillow raises almost anything for a damaged picture
        raise UserError(f"{name_of(source)} {why_not_read(error, source)}") from None


def name_of(source):
    """How a message calls what open_image takes."""
    return source if isinstance(source, (str, os.PathLike)) else getattr(source, "filename", None) or "the picture"


def check_is_file(path):
    """Raises UserError where a path leads to no file, told without opening it: a pipe would wait for ever."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the path of a picture") from None
    except (OSError, ValueError) as error:  # the second: a null character
        raise UserError(f"{path} cannot be read ({error}): give the path of a picture") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise UserError(f"{path} is {kind}: give the path of a picture")


def why_not_read(error, source):
    """What Pillow raised for a source -> what is wrong with it, and the remedy."""
    if isinstance(error, Image.DecompressionBombError):
        return f"is too large ({str(error).partition(',')[0]}): make it smaller"
    kind = foreign_format(source)
    if kind and (kind != "AVIF" or isinstance(error, Image.UnidentifiedImageError)):
        return f"is {kind}, which is not read here: convert it to JPEG"
    reason = "not a picture" if isinstance(error, Image.UnidentifiedImageError) else first_line(error)
    return f"does not decode ({reason}): replace or remove it"


def foreign_format(path):
    """Which of FOREIGN a file is, None for another and for what is no path."""
    if isinstance(path, (str, os.PathLike)):
        with open(path, "rb") as file:
            head = file.read(64)
        return next((name for name, start in FOREIGN.items() if re.match(start, head, re.DOTALL)), None)


def to_rgb(image):
    """Any PIL mode -> upright RGB. 16-bit grey is scaled to 8, transparency becomes the letterbox's grey."""
    if image.width * image.height > MOST_PIXELS:
        raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels where {MOST_PIXELS:,} are read")
    image.load()  # first: TIFF turns itself then, and the EXIF of a PNG may come after its pixels
    turn = exif_turn(image)
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I"):  # convert() would clip 16 bits to white instead of scaling them
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*GRAY, 255)), image)
    image = image.convert("RGB")
    image.info = {}  # with the EXIF: who opens this again must not turn it again
    return image


def exif_turn(image):
    """The Image.Transpose that a loaded picture's EXIF (or XMP) asks for; None for none, and for what is no number."""
    try:
        return EXIF_TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # a damaged block may raise almost anything; other programs show such a picture as it is
        return None


def resize(image, input_shape, letterbox):
    """An RGB PIL image -> one of input_shape (height, width): the letterbox keeps the aspect and pads with grey."""
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
    """What open_image takes -> uint8 array (height, width, 3). `normalise` does the rest, on the device."""
    return np.array(resize(open_image(source), input_shape, letterbox))


def normalise(images):
    """uint8 tensor (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1], channels last in memory."""
    return (images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def check_input_shape(input_shape):
    """Raises UserError where (height, width) does not end as the 7x7 feature map that the networks embed."""
    if not all(isinstance(size, int) and math.ceil(size / 16) == 7 for size in input_shape[:2]) or len(input_shape) < 2:
        raise UserError(f"input shape {list(input_shape)}: the networks take 112x112 pictures (97 to 112 a side)")


def extension(path):
    return os.path.splitext(path)[1].lower()


def describe_unread(extensions):
    """A line on the images among files that were left out, by {extension: count}; None if there are none."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(extensions.items()) if kind in UNREAD_EXTENSIONS)
    if kinds:
        return f"left out, for their formats are not read: {kinds}: save them as .jpg or .png"


class EncodedImage(io.BytesIO):
    """What open_image takes; its name is what an error message calls it."""

    def __init__(self, content, name):
        super().__init__(content)
        self.name = self.filename = name

    def __str__(self):
        return self.name
