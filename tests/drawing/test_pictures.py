"""Pictures made of pictures, and their letters; curves that mark operating points."""
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageFont

from arcface import Candidate
from utils.drawing import fonts
from utils.drawing.fonts import fit_font, shorten
from utils.drawing.pictures import GREEN, PAPER, RED, draw_candidates, draw_comparison, draw_mistakes
from utils.drawing.plots import plot_roc

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
    pictures = [draw_candidates(face(), [(face(), candidate("W" * 90))] * 3, "= FAR 0.001 on LFW"),
                draw_comparison([face(), face()], candidate(), threshold),
                draw_mistakes({"One person, rejected (1)": [(face(), face(), 1.3, "W" * 90)] * 3,
                               "Two people, accepted (0)": []}, 1.1)]
    for picture in pictures:
        pixels = np.asarray(picture)
        edge = np.concatenate([pixels[:, :8].reshape(-1, 3), pixels[:, -8:].reshape(-1, 3)])
        assert (edge == bytes.fromhex(PAPER[1:])[0]).all()


@pytest.mark.parametrize("shift", [0.4, 1.0])
def test_the_roc_is_drawn_for_any_network_and_marks_every_operating_point(tmp_path, shift):
    rng = np.random.default_rng(0)
    genuine = np.tile([True, False], 200)
    distances = rng.uniform(0.3, 0.8, 400) + np.where(genuine, 0, shift)  # apart at 1.0: the FAR is 0
    thresholds = {"best accuracy": 0.8, "FAR 0.01": 0.7, "FAR 0.001": 0.1}
    plot_roc(distances, genuine, thresholds, "title", tmp_path / "roc.png")
    with Image.open(tmp_path / "roc.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    green, orange, red = (44, 160, 44), (255, 127, 14), (214, 39, 40)  # matplotlib's tab:green and so on
    for colour in (green, orange, red):
        assert (pixels == colour).all(2).any()
    assert (pixels[:, :pixels.shape[1] // 10] == red).all(2).any()  # the point at FAR 0, on the edge of the axis
