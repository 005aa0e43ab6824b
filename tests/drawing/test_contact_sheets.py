"""utils/drawing/contact_sheets.py: images of faces and verdicts, their letters and their files."""
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from PIL import Image

from utils.common.errors import UserError
from utils.drawing import contact_sheets
from utils.drawing.contact_sheets import (
    AMBER,
    GREEN,
    LIME,
    PAPER,
    RED,
    draw_batch,
    draw_candidates,
    draw_comparison,
    draw_errors,
    draw_everybody,
    draw_faces,
    fit_text,
    font_for,
    save_image,
)
from utils.faces.detector import Face
from utils.faces.face_crop import CroppedFace

STIX = Path(matplotlib.__file__).parent / "mpl-data" / "fonts" / "ttf" / "STIXGeneral.ttf"


@pytest.fixture(autouse=True)
def no_system_fonts(monkeypatch):
    """Hide the fonts of the machine."""
    monkeypatch.setattr(contact_sheets, "CJK_FONTS", ("no such font.ttf",))
    contact_sheets.load_cjk_font.cache_clear()


def face(color=(90, 90, 90)):
    return np.full((112, 112, 3), color, np.uint8)


def candidate(name="Ann", distance=0.9, verdict=None):
    """An object with the fields of arcface.Candidate and Match."""
    same = distance < 1.1
    return SimpleNamespace(name=name, distance=distance, threshold=1.1, same=same,
                           verdict=verdict or ("same" if same else "different"))


def found(boxes, number=1, size=(400, 300)):
    """The CroppedFace of a gray photo with faces in boxes (left, top, width, height)."""
    places = [(0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8)]
    faces = [Face(np.array(box, float), np.array(box[:2]) + np.multiply(places, box[2:]), 0.9) for box in boxes]
    image = Image.new("RGB", size, (128, 128, 128))
    return CroppedFace(image, image, faces, number, faces[number - 1])


def is_color(image, color):
    return (np.asarray(image) == list(bytes.fromhex(color[1:]))).all(2)


# Letters

@pytest.mark.parametrize("text, expected", [
    ("José Ñandú", "José Ñandú"), ("Жанна", "Жанна"), ("distance ≥ 1 …", "distance ≥ 1 …"), ("a; b", "a; b"), ("", ""),
    ("王小明", "\\u738b\\u5c0f\\u660e"), ("Li 王", "Li \\u738b"), ("\udcff.jpg", "\\udcff.jpg"),
    ("a\nb\t", "a\\u000ab\\u0009")])
def test_letters_without_a_font_are_written_as_numbers(text, expected):
    assert font_for(text, 16)[1] == expected


def test_a_cjk_font_of_the_system_is_used_for_cjk_alone(monkeypatch):
    monkeypatch.setattr(contact_sheets, "CJK_FONTS", ("no such font.ttf", str(STIX)))
    contact_sheets.load_cjk_font.cache_clear()
    for text, name in (("Li 王", "STIXGeneral"), ("Li", "DejaVu Sans")):
        font, drawn = font_for(text, 16)
        assert (drawn, font.getname()[0]) == (text, name)


@pytest.mark.parametrize("text", ["Ann", "a name that does not end " * 4, "i" * 300, "W"])
@pytest.mark.parametrize("width", [5, 60, 168])
def test_a_cut_text_fits_and_keeps_its_beginning(text, width):
    font, _ = font_for(text, 16)
    cut = fit_text(text, font, width)
    assert cut == text or (cut.endswith("…") and text.startswith(cut[:-1]) and font.getlength(text) > width)
    assert font.getlength(cut) <= width or cut == "…"


# Sheets

@pytest.mark.parametrize("number", [1, 11])
def test_every_accepted_candidate_has_a_green_frame_and_the_others_a_red_one(number):
    names = ["王小明", "José", "a name that does not end " * 4, "\udcff", "a;b", "Ann"]
    people = [candidate(names[index % 6], 0.9 if index % 2 else 1.3) for index in range(number)]
    drawn = draw_candidates(face(), [(face(), person) for person in people], "= best accuracy on LFW")
    frame = 4 * 168 * 2 - 4 * 4  # pixels of a frame two pixels wide
    accepted = number // 2
    assert accepted * frame <= is_color(drawn, GREEN).sum() < accepted * frame + 300 * accepted + 1
    assert (number - accepted) * frame <= is_color(drawn, RED).sum() < (number - accepted) * (frame + 500)


def test_sheets_keep_a_margin_around_any_text():
    photos = [Image.new("RGB", (1008, 20)), Image.new("RGB", (90, 1008))]
    for drawn in (draw_candidates(face(), [(face(), candidate("W" * 90))] * 3, "= FAR 0.001 on LFW"),
                  draw_comparison([face(), face()], candidate(), "= FAR 0.001 on LFW", photos),
                  draw_errors({"One person, rejected": (3, [(face(), face(), 1.3, "W" * 90)] * 3),
                               "Two people, accepted": (0, [])}, 1.1)):
        paper = is_color(drawn, PAPER)
        assert paper[:, :8].all() and paper[:, -8:].all()


@pytest.mark.parametrize("sizes", [[(1008, 500), (100, 1008)], [(40, 30), None], [None, None]])
def test_photos_of_any_size_stand_whole_above_their_crops(sizes):
    colors = [(250, 0, 250), (0, 250, 250)]
    photos = [size and Image.new("RGB", size, color) for size, color in zip(sizes, colors)]
    drawn = draw_comparison([face(), face()], candidate(), "", photos)
    for size, color in zip(sizes, colors):
        assert (np.asarray(drawn) == color).all(2).sum() == (size[0] * size[1] if size else 0)
    assert drawn.height == 336 + 16 + 84 + (max(size[1] for size in sizes if size) + 16 if any(sizes) else 0)


@pytest.mark.parametrize("number, columns, rows", [(1, 1, 1), (8, 8, 1), (9, 8, 2)])
def test_a_batch_is_a_grid_whose_captions_stay_below_their_own_images(number, columns, rows):
    pixels = np.asarray(draw_batch(np.full((number, 112, 112, 3), 255, np.uint8), ["王 Σ W" * 20] * number))
    assert pixels.shape == (rows * 138 + 6, columns * 118 + 6, 3)
    inked = (pixels < 60).any((0, 2))
    for column in range(columns):
        assert inked[6 + column * 118:][:112].any() and not inked[column * 118:][:6].any()


# Photos

@pytest.mark.parametrize("number", [1, 2])
def test_the_face_that_counts_has_the_color_and_the_landmarks(number):
    boxes = [(200, 100, 90, 90), (40, 100, 80, 80)]
    left, top, width, height = boxes[number - 1]
    marked = np.argwhere(is_color(draw_faces(found(boxes, number)), LIME)) / (336 / 400)
    low, high = np.array([top, left]), np.array([top + height, left + width])
    assert (marked >= low - (28, 4)).all() and (marked <= high + 4).all()
    assert ((marked > low + 10) & (marked < high - 10)).all(1).sum() > 5 * 9  # five dots


@pytest.mark.parametrize("box", [(150, 100, 80, 80), (-20, -30, 90, 90), (350, 100, 90, 90), (0, 250, 90, 90)])
def test_every_label_is_whole_and_covers_no_other(box):
    faces = [found([box, (230, 10, 85, 85), box], number) for number in (1, 2, 3)]
    drawn = draw_everybody(faces, [candidate(distance=0.5), candidate(), candidate(distance=1.3)])
    for color, count in ((GREEN, 2), (RED, 1)):
        fills = np.asarray(Image.fromarray(is_color(drawn, color)).resize((drawn.width // 4, drawn.height // 4), 0))
        assert fills.sum() * 16 > count * 20 * 40


def test_everybody_has_the_color_of_the_verdict_and_an_aligned_crop_too():
    faces = [found([(10, 50, 90, 90), (150, 50, 90, 90), (290, 50, 90, 90)], number) for number in (1, 2, 3)]
    drawn = draw_everybody(faces, [candidate(), candidate(verdict="not sure"), candidate(distance=1.3)])
    third = drawn.width // 3
    for index, color in enumerate((GREEN, AMBER, RED)):
        part = is_color(drawn.crop((index * third, 0, index * third + third, drawn.height)), color)
        assert part.sum() > 500 and part.sum() > 0.95 * is_color(drawn, color).sum()
    crop = Image.new("RGB", (112, 112))
    assert is_color(draw_everybody([CroppedFace(crop, crop)], [candidate()]), GREEN).any()


# Files

def test_a_file_has_the_format_of_its_extension(tmp_path):
    for name, kind in (("a.png", "PNG"), ("a.JPG", "JPEG"), ("a.jpeg", "JPEG"), ("a.webp", "WEBP")):
        save_image(Image.new("RGB", (8, 8)), tmp_path / name)
        assert Image.open(tmp_path / name).format == kind
    for name in ("a", "a.pdf", "png"):
        with pytest.raises(UserError, match=rf"{name}: give a name that ends in \.png"):
            save_image(Image.new("RGB", (8, 8)), tmp_path / name)
