"""Pictures made of pictures, and their letters."""
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageChops

from arcface import Candidate
from utils.drawing import contact_sheets
from utils.drawing.contact_sheets import (
    GREEN,
    LIME,
    PAPER,
    RED,
    draw_batch,
    draw_candidates,
    draw_comparison,
    draw_errors,
    draw_faces,
    fit_text,
    font_for,
)
from utils.faces.detector import Face
from utils.faces.face_crop import CroppedFace

STIX = Path(matplotlib.__file__).parent / "mpl-data" / "fonts" / "ttf" / "STIXGeneral.ttf"


@pytest.fixture(autouse=True)
def no_system_fonts(monkeypatch):
    """The machine's fonts must not decide."""
    monkeypatch.setattr(contact_sheets, "CJK_FONTS", ("no such font.ttf",))
    contact_sheets.load_cjk_font.cache_clear()


def face(colour=(90, 90, 90)):
    return np.full((112, 112, 3), colour, np.uint8)


def candidate(name="Ann", distance=0.9, threshold=1.1):
    return Candidate(name, distance, 1 - distance ** 2 / 2, threshold, distance < threshold, Path(f"{name}.jpg"))


def count(picture, colour):
    return sum(n for n, found in picture.getcolors(picture.width * picture.height)
               if found == tuple(bytes.fromhex(colour[1:])))


@pytest.mark.parametrize("text, expected", [
    ("José Ñandú", "José Ñandú"), ("Жанна", "Жанна"), ("distance ≥ 1 …", "distance ≥ 1 …"), ("a; b", "a; b"), ("", ""),
    ("王小明", "\\u738b\\u5c0f\\u660e"), ("Li 王", "Li \\u738b"), ("\udcff.jpg", "\\udcff.jpg"),
    ("a\nb\t", "a\\u000ab\\u0009")])
def test_letters_without_a_font_are_written_as_numbers(text, expected):
    assert font_for(text, 16)[1] == expected


def test_a_cjk_font_of_the_system_is_used_for_cjk_alone(monkeypatch):
    monkeypatch.setattr(contact_sheets, "CJK_FONTS", ("no such font.ttf", str(STIX)))
    for text, name in (("Li 王", "STIXGeneral"), ("Li", "DejaVu Sans")):
        font, drawn = font_for(text, 16)
        assert (drawn, font.getname()[0]) == (text, name)


@pytest.mark.parametrize("text", ["Ann", "a name that does not end " * 4, "i" * 300, "W"])
@pytest.mark.parametrize("width", [5, 60, 168])
def test_a_fit_texted_text_fits_and_keeps_its_beginning(text, width):
    font, _ = font_for(text, 16)
    found = fit_text(text, font, width)
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
             draw_errors({"One person, rejected": (3, [(face(), face(), 1.3, "W" * 90)] * 3),
                            "Two people, accepted": (0, [])}, 1.1)]
    for picture in drawn:
        pixels = np.asarray(picture)
        edge = np.concatenate([pixels[:, :8].reshape(-1, 3), pixels[:, -8:].reshape(-1, 3)])
        assert (edge == bytes.fromhex(PAPER[1:])[0]).all()


@pytest.mark.parametrize("sizes", [
    [(336, 336), (336, 200)], [(1008, 500), (100, 1008)], [(40, 30), None], [None, None]])
def test_photos_of_any_size_stand_whole_above_their_crops(sizes):
    colours = [(250, 0, 250), (0, 250, 250)]
    photos = [size and Image.new("RGB", size, colour) for size, colour in zip(sizes, colours)]
    picture = draw_comparison([face(), face()], candidate(), "", photos)
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
    write = contact_sheets.draw_text
    monkeypatch.setattr(contact_sheets, "draw_text", lambda canvas, position, text, *rest, **named: (
        written.append(text), write(canvas, position, text, *rest, **named)))
    pair = (face(), face(), 1.3, "Ann / 王")
    sheets = [draw_errors({"One person, rejected": (30, [pair] * 12), "Two people, accepted": (1, [pair])}, 1.1),
              draw_errors({"One person, rejected": (0, []), "Two people, accepted": (0, [])}, 1.1)]
    assert [text for text in written if "people" in text or "person" in text] == [
        "One person, rejected: 12 of 30", "Two people, accepted: 1 of 1",
        "One person, rejected: none", "Two people, accepted: none"]
    assert sheets[0].width == sheets[1].width and sheets[0].height > 6 * 120 and sheets[1].height < 120


def make_look(boxes, size=(400, 300), chosen=1):
    """A grey photo with faces in these boxes (x, y, width, height)."""
    faces = [Face(np.array(box, float), np.array(box[:2]) + np.multiply(
        [(0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8)], box[2:]), 0.9) for box in boxes]
    image = Image.new("RGB", size, (128, 128, 128))
    return CroppedFace(image, image, faces, chosen, faces[chosen - 1])


def lime(picture):
    return (np.asarray(picture) == list(bytes.fromhex(LIME[1:]))).all(2)


@pytest.mark.parametrize("face, size, longest", [
    (200, (400, 300), 336), (60, (400, 300), 336), (30, (400, 300), 533), (8, (400, 300), 1008), (30, (60, 60), 336),
    (2000, (4000, 3000), 336), (100, (4000, 3000), 1008)])
def test_the_smaller_the_faces_the_larger_the_photo_within_limits(face, size, longest):
    picture = draw_faces(make_look([(10, 10, face, face), (20, 20, face * 1.2, face * 1.2)], size))
    assert max(picture.size) == longest
    assert picture.width / picture.height == pytest.approx(size[0] / size[1], abs=0.01)


def test_the_face_used_has_the_landmarks_and_the_colour():
    boxes = [(200, 100, 90, 90), (40, 100, 80, 80)]
    for chosen, box in enumerate(boxes, 1):
        marked = np.argwhere(lime(draw_faces(make_look(boxes, chosen=chosen)))) / (336 / 400)
        low, high = np.array([box[1], box[0]]), np.array([box[1] + box[3], box[0] + box[2]])
        assert (marked >= low - (24, 4)).all() and (marked <= high + 4).all()
        assert ((marked > low + 10) & (marked < high - 10)).all(1).sum() > 5 * 9  # five dots


@pytest.mark.parametrize("box", [(150, 100, 80, 80), (-20, -30, 90, 90), (350, 100, 90, 90), (0, 250, 90, 90)])
def test_a_number_is_written_within_the_photo_whatever_the_box(box):
    """Drawn as the first and as the second of the faces, it differs in its tag, and in that alone."""
    other = (230, 10, 85, 85)
    first, second = (make_look(boxes, chosen=chosen) for boxes, chosen in (([other, box], 2), ([box, other], 1)))
    found = ImageChops.difference(draw_faces(first), draw_faces(second)).convert("L")
    left, top = np.clip(np.multiply(box[:2], 336 / 400) - (1, 16), 0, None).astype(int)
    tag = np.asarray(found)[top:top + 18, left:left + 18]
    assert (tag > 60).sum() > 10
    assert (np.asarray(found) > 0).sum() < 2 * 16 * 16


def test_a_group_photo_has_a_number_on_every_face(shared, detector):
    paths = sorted(shared.joinpath("lfw_raw_folds1-3").glob("*/*.jpg"))[:12]
    group = Image.new("RGB", (4 * 90, 3 * 90))
    for place, path in enumerate(paths):
        group.paste(Image.open(path).resize((90, 90)), (place % 4 * 90, place // 4 * 90))
    faces = detector.detect(group)
    assert len(faces) >= 12
    for chosen in (1, 12):
        picture = draw_faces(CroppedFace(group, group, faces, chosen, faces[chosen - 1]))
        assert picture.width > 500
        scale = picture.width / group.width
        tags = [picture.crop((x, y - 15, x + 12, y)) for x, y in
                (np.maximum(face.box[:2] * scale, (0, 16)).round().astype(int) for face in faces)]
        shares = [(np.asarray(tag) == list(bytes.fromhex(LIME[1:]))).all(2).mean() for tag in tags]
        assert [place for place, share in enumerate(shares, 1) if share > 0.3] == [chosen]
        light = [(np.asarray(tag.convert("L")) > 100).mean() for tag in tags]
        assert min(light) > 0.4
