"""utils/faces/images.py: every image becomes the same upright RGB 112x112 input."""
import io
import struct

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, ImageOps

from utils.common.errors import UserError
from utils.faces.images import EncodedImage, check_input_shape, normalise, open_image, preprocess

RED = (200, 40, 60)
TRANSPOSE = Image.Transpose


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def quadrants(width=48, height=32):
    """An image whose every rotation and flip differs: red, green over blue, white."""
    image = Image.new("RGB", (width, height), "white")
    image.paste("red", (0, 0, width // 2, height // 2))
    image.paste("lime", (width // 2, 0, width, height // 2))
    image.paste("blue", (0, height // 2, width // 2, height))
    return image


def save(image, path, **options):
    image.save(path, **options)
    return path


def orientation(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def pixels(source):
    image = open_image(source)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


# Modes

@pytest.mark.parametrize("mode", ["L", "1", "CMYK"])
def test_gray_one_bit_and_cmyk_keep_their_colors(tmp_path, mode):
    image = quadrants().convert(mode)
    found = pixels(save(image, tmp_path / f"image.{'jpg' if mode == 'CMYK' else 'png'}"))
    assert abs(found - np.asarray(image.convert("RGB")).astype(int)).mean() < 4


@pytest.mark.parametrize("mode, clear, opaque", [("RGBA", (255, 0, 0, 0), (*RED, 255)), ("LA", (255, 0), (30, 255))])
def test_transparent_becomes_gray_and_opaque_stays(tmp_path, mode, clear, opaque):
    image = Image.new(mode, (4, 2), clear)
    image.paste(opaque, (2, 0, 4, 2))
    found = pixels(save(image, tmp_path / "image.png"))
    assert (found[:, :2] == 128).all() and (found[:, 2:] == opaque[:-1]).all()
    assert abs(pixels(Image.new("RGBA", (2, 2), (255, 255, 255, 128))) - 192).max() <= 1


@pytest.mark.parametrize("mode, clear, key", [("RGB", (0, 255, 0), (0, 255, 0)), ("P", 0, 0)])
def test_a_transparent_color_becomes_gray(tmp_path, mode, clear, key):
    image = Image.new(mode, (4, 2), clear)
    if mode == "P":
        image.putpalette([255, 255, 0, *RED])
    image.paste(RED if mode == "RGB" else 1, (2, 0, 4, 2))
    found = pixels(save(image, tmp_path / "image.png", transparency=key))
    assert (found[:, :2] == 128).all() and (found[:, 2:] == RED).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_gray_is_scaled_not_clipped(tmp_path, suffix):
    image = Image.fromarray(np.array([[0, 257, 32768, 65535]], np.uint16))
    found = pixels(save(image, tmp_path / f"deep.{suffix}"))
    assert abs(found[0, :, 0] - [0, 1, 128, 255]).max() <= 1
    assert (found == found[:, :, :1]).all()


def test_the_first_of_several_frames_counts(tmp_path):
    later = Image.new("RGB", (48, 32), "black")
    for name in ("frames.gif", "frames.tif", "frames.webp", "frames.png", "phone.mpo"):
        found = pixels(save(quadrants(), tmp_path / name, save_all=True, append_images=[later]))
        assert abs(found - np.asarray(quadrants()).astype(int)).mean() < 12, name


# Orientation

@pytest.mark.parametrize("number", range(1, 9))
def test_exif_orientation_is_undone(tmp_path, number):
    stored_as = {2: TRANSPOSE.FLIP_LEFT_RIGHT, 3: TRANSPOSE.ROTATE_180, 4: TRANSPOSE.FLIP_TOP_BOTTOM,
                 5: TRANSPOSE.TRANSPOSE, 6: TRANSPOSE.ROTATE_90, 7: TRANSPOSE.TRANSVERSE, 8: TRANSPOSE.ROTATE_270}
    stored = quadrants().transpose(stored_as[number]) if number > 1 else quadrants()
    path = save(stored, tmp_path / "stored.jpg", exif=orientation(number), quality=100, subsampling=0)
    for source in (path, Image.open(path), ImageOps.exif_transpose(Image.open(path)), open_image(path)):
        assert pixels(source).shape == (32, 48, 3)
        assert abs(pixels(source) - np.asarray(quadrants()).astype(int)).max() < 30


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif", "avif"])
def test_an_image_that_the_caller_has_changed_is_not_rotated_again(tmp_path, kind):
    path = save(quadrants(), tmp_path / f"stored.{kind}", exif=orientation(6))
    assert open_image(path).size == open_image(Image.open(path)).size == (32, 48)
    image = Image.open(path)
    for made in (image.rotate(-90, expand=True), image.transpose(TRANSPOSE.ROTATE_180), image.resize((20, 10)),
                 image.crop((0, 0, 30, 20)), open_image(path)):
        assert np.array_equal(pixels(made), np.asarray(made.convert("RGB"))), made


# Sources

@pytest.mark.parametrize("kind, count, value, rotated", [
    (3, 1, (77).to_bytes(4, "little"), False), (2, 2, b"6\0\0\0", False), (3, 0, b"\6\0\0\0", False),
    (99, 1, b"\6\0\0\0", False), (4, 1, b"\6\0\0\0", True)], ids=["77", "text", "none", "no type", "long"])
def test_an_odd_exif_orientation_changes_nothing(tmp_path, kind, count, value, rotated):
    block = b"Exif\0\0II*\0\10\0\0\0\1\0" + struct.pack("<HHI", 0x0112, kind, count) + value + bytes(4)
    assert open_image(save(quadrants(), tmp_path / "odd.jpg", exif=block)).size == ((32, 48) if rotated else (48, 32))


def test_path_string_pil_image_open_file_and_array_give_the_same(tmp_path):
    array = noise(30, 20)
    path = save(Image.fromarray(array), tmp_path / "noise.png")
    with open(path, "rb") as file:
        for source in (path, str(path), Image.fromarray(array), Image.open(path), array, file, file,
                       EncodedImage(path.read_bytes(), "record 3")):
            assert (pixels(source) == array).all()
    assert (pixels(array[:, :, 0]) == array[:, :, :1]).all()
    opencv = array[:, :, ::-1].copy()
    assert (pixels(opencv[:, :, ::-1]) == array).all()


@pytest.mark.parametrize("array", [
    np.zeros((112, 112, 3), np.float32), np.zeros((112, 112), bool), np.zeros((112, 112), np.uint16),
    np.zeros((1, 112, 112, 3), np.uint8), np.zeros(112, np.uint8), np.zeros((112, 112, 1), np.uint8),
    np.zeros((3, 112, 112), np.uint8), np.zeros((0, 112, 3), np.uint8)])
def test_an_array_of_another_dtype_or_shape_is_a_type_error(array):
    with pytest.raises(TypeError, match=r"uint8, RGB \(H, W, 3\).*BGR give image\[:, :, ::-1\]"):
        open_image(array)


@pytest.mark.parametrize("source", [None, 3, b"face.jpg", ["face.jpg"], b"\0" * 200_000])
def test_an_object_that_is_no_image_is_a_type_error_of_one_short_line(source):
    with pytest.raises(TypeError, match="an image is a path") as caught:
        open_image(source)
    assert len(str(caught.value)) < 500


# Errors

@pytest.mark.parametrize("name, answer", [
    ("XResolution_as_text.jpg", (40, 60)), ("Make_beyond_the_end.jpg", (60, 40)), ("Orientation_as_byte.jpg", (60, 40)),
    ("jpeg middle zeroed.jpg", (112, 112)), ("jpeg declares 65500^2.jpg", "4290250000 pixels"),
    ("m_avif_flip_head_1_51.jpg", "does not decode"), ("png truncated rows.png", (112, 112)),
    ("x.bin", "not an image")])
def test_files_that_once_crashed_it_open_or_are_a_user_error(shared, name, answer):
    path = shared / "hostile" / name
    if isinstance(answer, tuple):
        assert open_image(path).size == answer
        return
    with pytest.raises(UserError) as caught:
        open_image(path)
    assert str(path) in str(caught.value) and answer in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("head", [
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"%PDF-1.7\n", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"])
def test_other_formats_are_refused_under_any_file_name(tmp_path, monkeypatch, head):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments: pytest.fail("Ghostscript was started"))
    (tmp_path / "face.jpg").write_bytes(head + bytes(200))
    with pytest.raises(UserError, match=r"face\.jpg does not decode \(not an image, or in a format .* such as HEIC\)"):
        open_image(tmp_path / "face.jpg")


def make_truncated(path):
    Image.fromarray(noise(112, 112)).save(path)
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize("make", [
    make_truncated, lambda path: path.touch(), lambda path: path.write_text("not an image"),
    lambda path: None, lambda path: path.mkdir()], ids=["truncated", "empty", "text", "missing", "folder"])
def test_what_does_not_open_is_a_user_error_of_one_line_that_names_it(tmp_path, make):
    path = tmp_path / "face of 小明.jpg"
    make(path)
    with pytest.raises(UserError) as caught:
        open_image(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_open_image_and_an_image_from_inside_a_file_are_named(tmp_path):
    make_truncated(tmp_path / "cut.jpg")
    content = (tmp_path / "cut.jpg").read_bytes()
    with Image.open(tmp_path / "cut.jpg") as image:
        for source, name in ((image, r"cut\.jpg"), (EncodedImage(content, "record 3"), "record 3"),
                             (io.BytesIO(content), "the image")):
            with pytest.raises(UserError, match=f"{name} does not decode"):
                open_image(source)


# To the network's input

@pytest.mark.parametrize("size, inside", [
    ((200, 100), np.s_[28:84, :]), ((100, 200), np.s_[:, 28:84]), ((2000, 3), np.s_[55:56, :]), ((1, 1), np.s_[:, :]),
    ((55, 55), np.s_[:, :]), ((100, 57), np.s_[24:87, :])])
def test_letterbox_keeps_the_aspect_between_exact_gray_bands(size, inside):
    found = preprocess(Image.new("RGB", size, RED))
    is_image = np.zeros((112, 112), bool)
    is_image[inside] = True
    assert (found[is_image] == RED).all()
    assert (found[~is_image] == 128).all()


@pytest.mark.parametrize("size, letterbox", [((60, 60), True), ((200, 20), False)])
def test_resizing_is_bicubic_and_leaves_112_pixels_unchanged(size, letterbox):
    image = Image.fromarray(noise(*size))
    expected = np.asarray(image.resize((112, 112), Image.Resampling.BICUBIC))
    assert (preprocess(image, letterbox=letterbox) == expected).all()
    assert (preprocess(noise(112, 112), letterbox=letterbox) == noise(112, 112)).all()


def test_normalise_is_exact_and_channels_last():
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(2, 1, 1, 3)
    found = normalise(values)
    expected = (np.arange(256, dtype=np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    assert found.dtype == torch.float32 and (found[1, 2].flatten().numpy() == expected).all()
    assert found.shape == (2, 3, 16, 16) and found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [[96, 112], [112, 113], [224, 224, 3], [0, 0], [112]])
def test_input_shapes_that_do_not_end_in_7x7_are_a_user_error(shape):
    check_input_shape((97, 112, 3))
    with pytest.raises(UserError, match="112x112"):
        check_input_shape(shape)
