"""Pictures made of pictures, and their letters."""
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageFont

from arcface import Candidate
from utils.drawing import fonts, pictures
from utils.drawing.fonts import fit_font, shorten
from utils.drawing.pictures import GREEN, PAPER, RED, draw_batch, draw_candidates, draw_comparison, draw_mistakes

STIX = Path(matplotlib.__file__).parent / "mpl-data" / "fonts" / "ttf" / "STIXGeneral.ttf"
BOLD_A = "\U0001d400"  # in STIX, not in DejaVu Sans


@pytest.fixture(autouse=True)
def no_system_fonts(monkeypatch):
    """What the machine has must not decide."""
    monkeypatch.setattr(fonts, "SYSTEM_FONTS", ("no such font.ttf",))


def face(colour=(90, 90, 90)):
    return np.full((112, 112, 3), colour, np.uint8)


def candidate(name="Ann", distance=0.9, threshold=1.1):
    return Candidate(name, distance, 1 - distance ** 2 / 2, threshold, distance < threshold, Path(f"{name}.jpg"))


def count(picture, colour):
    return sum(n for n, found in picture.getcolors(picture.width * picture.height)
               if found == tuple(bytes.fromhex(colour[1:])))


@pytest.mark.parametrize("text", ["Ann", "José Ñandú", "Жанна", "Ελένη", "distance ≥ 1 …", "a; b", ""])
def test_letters_that_the_font_has_are_written_as_they_are(text):
    assert fit_font(text, 16)[1] == text


@pytest.mark.parametrize("text, expected", [
    ("王小明", "\\u738b\\u5c0f\\u660e"), ("Li 王", "Li \\u738b"), ("\udcff.jpg", "\\udcff.jpg"),
    ("a\nb\t", "a\\u000ab\\u0009"), (BOLD_A, "\\u1d400")])
def test_letters_that_no_font_has_are_written_as_numbers(text, expected):
    assert fit_font(text, 16)[1] == expected


def test_a_font_of_the_system_is_used_where_it_has_the_letters(monkeypatch):
    monkeypatch.setattr(fonts, "SYSTEM_FONTS", ("no such font.ttf", str(STIX)))
    font, text = fit_font(f"A {BOLD_A}", 16)
    assert text == f"A {BOLD_A}" and font.getname()[0] == "STIXGeneral"
    assert fit_font("王", 16)[1] == "\\u738b"


def test_without_matplotlib_there_is_a_font_all_the_same(monkeypatch):
    monkeypatch.setattr(fonts.importlib.util, "find_spec", lambda name: None)
    fonts.load.cache_clear()
    try:
        font, text = fit_font("Ann 王", 16)
    finally:
        fonts.load.cache_clear()
    assert text == "Ann \\u738b" and font.getname() == ImageFont.load_default(16).getname()


@pytest.mark.parametrize("text", ["Ann", "a name that does not end " * 4, "i" * 300, "W"])
@pytest.mark.parametrize("width", [5, 60, 168])
def test_a_shortened_text_fits_and_keeps_its_beginning(text, width):
    font, _ = fit_font(text, 16)
    found = shorten(text, font, width)
    assert found == text or (found.endswith("…") and text.startswith(found[:-1]))
    assert font.getlength(found) <= width or found == "…"
    assert found == text or font.getlength(text) > width


@pytest.mark.parametrize("number", [1, 2, 5, 6, 11])
def test_the_strip_has_a_green_frame_for_every_accepted_person_and_a_red_one_for_the_others(number):
    names = ["王小明", "José", "a name that does not end " * 4, "\udcff", "a;b", "Ann"]
    people = [candidate(names[place % 6], 0.9 if place % 2 else 1.3) for place in range(number)]
    picture = draw_candidates(face(), [(face(), person) for person in people], "= best accuracy on LFW")
    frame = 4 * 168 * 2 - 4 * 4  # pixels of a frame two pixels wide
    accepted = number // 2
    assert accepted * frame <= count(picture, GREEN) < accepted * frame + 300 * accepted + 1
    assert (number - accepted) * frame <= count(picture, RED) < (number - accepted) * (frame + 500)


def test_pictures_keep_a_margin_of_paper_whatever_the_text():
    threshold = "by default, not measured for these weights"
    drawn = [draw_candidates(face(), [(face(), candidate("W" * 90))] * 3, "= FAR 0.001 on LFW"),
             draw_comparison([face(), face()], candidate(), threshold),
             draw_comparison([face(), face()], candidate(), threshold,
                             [Image.new("RGB", (1008, 20)), Image.new("RGB", (90, 1008))]),
             draw_mistakes({"One person, rejected": (3, [(face(), face(), 1.3, "W" * 90)] * 3),
                            "Two people, accepted": (0, [])}, 1.1)]
    for picture in drawn:
        pixels = np.asarray(picture)
        edge = np.concatenate([pixels[:, :8].reshape(-1, 3), pixels[:, -8:].reshape(-1, 3)])
        assert (edge == bytes.fromhex(PAPER[1:])[0]).all()


@pytest.mark.parametrize("sizes", [
    [(336, 336), (336, 200)], [(1008, 500), (100, 1008)], [(40, 30), None], [None, None]])
def test_photographs_of_any_size_stand_whole_above_their_crops(sizes):
    colours = [(250, 0, 250), (0, 250, 250)]
    photographs = [size and Image.new("RGB", size, colour) for size, colour in zip(sizes, colours)]
    picture = draw_comparison([face(), face()], candidate(), "", photographs)
    pixels = np.asarray(picture)
    for size, colour in zip(sizes, colours):
        assert (pixels == colour).all(2).sum() == (size[0] * size[1] if size else 0)
    assert picture.height == 336 + 16 + 84 + (max(size[1] for size in sizes if size) + 16 if any(sizes) else 0)


@pytest.mark.parametrize("number, shape", [(1, (1, 1)), (5, (5, 1)), (8, (8, 1)), (9, (8, 2)), (64, (8, 8))])
def test_a_batch_is_a_grid_whose_captions_keep_beneath_their_own_pictures(number, shape):
    images, black = np.full((number, 112, 112, 3), 255, np.uint8), 60
    pixels = np.asarray(draw_batch(images, ["王 Σ W" * 20] * number).convert("L"))
    columns, rows = shape
    assert pixels.shape == (rows * 138 + 6, columns * 118 + 6)
    inked = (pixels < black).any(0)
    for column in range(columns):
        assert inked[6 + column * 118:][:112].any() and not inked[column * 118:][:6].any()


def test_mistakes_say_how_many_are_shown_of_how_many(monkeypatch):
    written = []
    write = pictures.write
    monkeypatch.setattr(pictures, "write", lambda canvas, position, text, *rest, **named: (
        written.append(text), write(canvas, position, text, *rest, **named)))
    pair = (face(), face(), 1.3, "Ann / 王")
    sheets = [draw_mistakes({"One person, rejected": (30, [pair] * 12), "Two people, accepted": (1, [pair])}, 1.1),
              draw_mistakes({"One person, rejected": (0, []), "Two people, accepted": (0, [])}, 1.1)]
    assert [text for text in written if "people" in text or "person" in text] == [
        "One person, rejected: 12 of 30", "Two people, accepted: 1 of 1",
        "One person, rejected: none", "Two people, accepted: none"]
    assert sheets[0].width == sheets[1].width and sheets[0].height > 6 * 120 and sheets[1].height < 120
