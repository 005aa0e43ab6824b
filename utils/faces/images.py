"""From a picture to the network's input: the one preprocessing of training, evaluation and prediction."""
import math

import numpy as np
from PIL import ExifTags, Image, ImageOps

from utils.machine.errors import UserError

EXTENSIONS = {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff"}
GREY = (128, 128, 128)


def open_image(source):
    """A path, an open binary file, a PIL image or a uint8 array (H, W, 3) or (H, W) -> an upright RGB PIL image.

    Upright by its EXIF. Raises UserError, which names the file, where there is none or it does not decode.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim not in (2, 3):
            raise TypeError(f"an image array must be uint8 (H, W, 3) or (H, W), not {source.dtype} {source.shape}")
        source = Image.fromarray(source)
    if isinstance(source, Image.Image):
        return to_rgb(source)
    try:
        with Image.open(source) as image:
            return to_rgb(image)
    except FileNotFoundError:
        raise UserError(f"{source} does not exist: give the path of a picture") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "not a picture" if isinstance(error, Image.UnidentifiedImageError) else error
        raise UserError(f"{source} does not decode ({reason}): replace or remove it") from None


def to_rgb(image):
    """Any PIL mode -> upright RGB. 16-bit grey is scaled to 8, transparency becomes the letterbox's grey."""
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # exif_transpose() alone would copy every picture
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # convert() would clip 16 bits to white instead of scaling them
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*GREY, 255)), image)
    return image.convert("RGB")


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
    canvas = Image.new("RGB", (width, height), GREY)
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
