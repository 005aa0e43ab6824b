"""The photos of img/, and photos made from them."""
import numpy as np
from conftest import ROOT
from PIL import Image

from utils.faces.images import open_image

PHOTOS = [ROOT / "img" / f"photo_{number}.jpg" for number in (1, 2, 3)]  # 1 and 2 show one person
CROPS = [ROOT / "img" / name for name in ("1_001.jpg", "1_002.jpg", "2_001.jpg")]


def side_by_side(*photos):
    """Paste photos next to each other, from left to right."""
    images = [open_image(photo) for photo in photos]
    group = Image.new("RGB", (sum(image.width for image in images), max(image.height for image in images)))
    left = 0
    for image in images:
        group.paste(image, (left, 0))
        left += image.width
    return group


def difference(first, second):
    """Return the mean difference of the pixels of two crops: below 26 for one photo, above 44 for two."""
    return np.abs(np.asarray(first, float) - np.asarray(second, float)).mean()
