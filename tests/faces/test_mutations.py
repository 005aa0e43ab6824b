"""Damaged images of every format: each is an RGB image or a UserError that names it."""
import io
import warnings

import numpy as np
import pytest
from PIL import Image

from utils.common.errors import UserError
from utils.faces.images import open_image


def exif(orientation):
    block = Image.Exif()
    block[0x0112], block[0x010F], block[0x011A] = orientation, "a maker", 72.0
    return block


def whole_images():
    """{file name: content}: every format and kind of file that is read."""
    image = Image.fromarray(np.random.default_rng(5).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    palette = image.convert("P")
    return {f"{number}.{format_.replace('jpeg', 'jpg')}": written(kind, format_, **options)
            for number, (kind, format_, options) in enumerate([
                (image, "jpeg", {}), (image, "jpeg", {"exif": exif(6)}), (image, "jpeg", {"subsampling": 0}),
                (image, "jpeg", {"progressive": True, "exif": exif(3)}), (image, "jpeg", {"restart_marker_blocks": 2}),
                (image, "jpeg", {"xmp": b'<x tiff:Orientation="6"/>'}), (image.convert("L"), "jpeg", {"exif": exif(5)}),
                (image.convert("CMYK"), "jpeg", {"exif": exif(6)}),
                (image, "mpo", {"save_all": True, "append_images": [image]}),
                (image, "png", {"exif": exif(6)}), (palette, "png", {"transparency": 3}), (image, "bmp", {}),
                (palette, "gif", {}), (image, "ppm", {}), (image, "webp", {"exif": exif(6)}),
                (image, "webp", {"lossless": True}), (image, "avif", {"exif": exif(6)}), (image, "tiff", {}),
                (image, "tiff", {"exif": exif(6)}), (image, "tiff", {"compression": "tiff_lzw"})])}


def written(image, format_, **options):
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def mutate(content, rng):
    """Bytes replaced (in the first 200 or anywhere), a bit flipped, an end cut off, or a stretch of zeros."""
    data = np.frombuffer(content, np.uint8).copy()
    kind, place = rng.integers(0, 5), rng.integers(0, len(data))
    if kind < 2:
        places = rng.integers(0, (len(data), min(len(data), 200))[kind], 3)
        data[places] = rng.integers(0, 256, 3)
    elif kind == 2:
        data[place] ^= 1 << rng.integers(0, 8)
    elif kind == 3:
        data = data[:place]
    else:
        data[place:place + rng.integers(1, 64)] = 0
    return data.tobytes()


def decoded(path):
    """What open_image returns for a file, as an array, or the message of its UserError."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=ResourceWarning)
        warnings.filterwarnings("ignore", module=r"PIL\.")  # as utils.faces.images does; pytest resets it
        try:
            image = open_image(path)
        except UserError as error:
            return str(error)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_whole_images_open(tmp_path):
    for name, content in whole_images().items():
        (tmp_path / name).write_bytes(content)
        assert decoded(tmp_path / name).shape in ((40, 60, 3), (60, 40, 3))


@pytest.mark.parametrize("count, seed", [(150, 1), pytest.param(5000, 2, marks=pytest.mark.faults)])
def test_a_damaged_image_opens_or_is_a_user_error(tmp_path, capfd, count, seed):
    rng, whole, opened = np.random.default_rng(seed), list(whole_images().items()), 0
    for number in range(count):
        name, content = whole[number % len(whole)]
        path = tmp_path / f"{number} 图 {name}"
        path.write_bytes(mutate(content, rng))
        capfd.readouterr()
        result = decoded(path)
        if not name.endswith("tiff"):  # libtiff itself writes to stderr
            assert capfd.readouterr() == ("", ""), path
        if isinstance(result, str):
            assert str(path) in result and "\n" not in result
        else:
            opened += 1
        path.unlink()
    assert 0.3 < opened / count < 0.9  # else the damage is too small or too large
