"""Images of faces, verdicts and candidates, drawn by Pillow alone, so that it needs no screen and starts fast."""
import functools
import importlib.util
import math
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.common.errors import UserError
from utils.common.files import atomic_write
from utils.evaluation.thresholds import WORDS

INK, PAPER, FAINT, LIME = "#222222", "#ffffff", "#777777", "#30e060"
GREEN, AMBER, RED = "#1a7f37", "#b26a00", "#c62828"
COLORS = {"same": GREEN, "not sure": AMBER, "different": RED}
IMAGE_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}

# Chinese, Japanese and Korean, by file name: Pillow looks for them in the system's font folders.
CJK_FONTS = ("NotoSansCJK-Regular.ttc", "SourceHanSans.ttc", "wqy-microhei.ttc", "wqy-zenhei.ttc",  # Linux
             "DroidSansFallbackFull.ttf", "msyh.ttc", "simsun.ttc", "malgun.ttf",                   # Windows
             "PingFang.ttc", "Hiragino Sans GB.ttc", "Arial Unicode.ttf")                           # macOS
FIRST_CJK = "\u2e80"  # the letters from here on are not in DejaVu Sans


def font_for(text, size):
    """Return (font, text). Unprintable letters, and CJK letters without a CJK font, become \\uXXXX."""
    font = load_cjk_font(size) if max(text, default="") >= FIRST_CJK else None
    last = FIRST_CJK if font is None else "\U0010ffff"
    text = "".join(letter if letter.isprintable() and letter < last else f"\\u{ord(letter):04x}" for letter in text)
    return font or load_font(size), text


@functools.cache
def load_font(size):
    """Return DejaVu Sans, which comes with matplotlib. Importing matplotlib for its path would take half a second."""
    package = Path(importlib.util.find_spec("matplotlib").origin).parent
    return ImageFont.truetype(package / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf", size)


@functools.cache
def load_cjk_font(size):
    """Return the first of CJK_FONTS that the system has, or None."""
    for name in CJK_FONTS:
        with suppress(OSError):
            return ImageFont.truetype(name, size)


def fit_text(text, font, width):
    """Cut the text and end it in an ellipsis if it is wider than `width` pixels."""
    cut = text
    while font.getlength(cut) > width and cut != "…":
        cut = cut.removesuffix("…")[:-1] + "…"
    return cut


def draw_text(canvas, position, text, size, color=INK, anchor="mm", width=None):
    """Write on a PIL image, cut to `width` pixels. The anchor "mm" centers text on the position, "lm" begins there."""
    font, text = font_for(text, size)
    ImageDraw.Draw(canvas).text(position, fit_text(text, font, width or canvas.width), color, font, anchor)


def tile(pixels, size, frame=None):
    """Return a PIL image (size, size) of a uint8 array (H, W, 3). frame: the color of its edge."""
    image = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
    if frame:
        ImageDraw.Draw(image).rectangle((0, 0, size - 1, size - 1), outline=frame, width=max(2, size // 60))
    return image


def draw_comparison(images, match, meaning, photos):
    """Return a PIL image of two faces and the verdict below.

    images: two uint8 arrays. match: an arcface.Match. meaning: what its threshold is. photos: what draw_faces()
    returned for each face, to stand above it, or None for an aligned crop.
    """
    size, gap, foot = 336, 16, 84
    columns = [max(size, photo.width if photo else 0) for photo in photos]
    above = max(photo.height + gap if photo else 0 for photo in photos)
    color = COLORS[match.verdict]
    canvas = Image.new("RGB", (sum(columns) + 3 * gap, above + size + gap + foot), PAPER)
    left = gap
    for image, photo, column in zip(images, photos, columns):
        middle = left + column // 2
        canvas.paste(tile(image, size, color), (middle - size // 2, above + gap))
        if photo:
            canvas.paste(photo, (middle - photo.width // 2, above - photo.height))
        left += column + gap
    middle, foot = canvas.width // 2, above + size + gap
    draw_text(canvas, (middle, foot + 30), WORDS[match.verdict].capitalize(), 26, color)
    line = f"Distance {match.distance:.3f}  {'<' if match.same else '≥'}  threshold {match.threshold:.3f} {meaning}"
    draw_text(canvas, (middle, foot + 62), line, 16)
    return canvas


def draw_grid(tiles, columns, gap, title=""):
    """Return a PIL image of tiles, `columns` in a row, each with its caption.

    tiles: [(PIL image, [(text, size, color) of each line below it])], the images of one size.
    """
    width, height = tiles[0][0].size
    caption = max(sum(size + 7 for _, size, _ in lines) for _, lines in tiles)
    column, row, head = width + gap, height + caption + gap, 44 if title else gap
    canvas = Image.new("RGB", (columns * column + gap, head + math.ceil(len(tiles) / columns) * row), PAPER)
    draw_text(canvas, (gap, head // 2), title, 15, FAINT, "lm", canvas.width - 2 * gap)
    for index, (image, lines) in enumerate(tiles):
        left, top = gap + index % columns * column, head + index // columns * row
        canvas.paste(image, (left, top))
        top += height
        for text, size, color in lines:
            draw_text(canvas, (left + width // 2, top + size // 2 + 4), text, size, color, width=width)
            top += size + 7
    return canvas


def draw_candidates(query, candidates, meaning):
    """Return a PIL image of the query and its nearest people.

    query: a uint8 array. candidates: [(uint8 array, arcface.Candidate)]. meaning: what their threshold is.
    """
    tiles = [(tile(query, 168, INK), [("Who is this?", 16, INK)])]
    for image, candidate in candidates:
        color, verdict = COLORS[candidate.verdict], WORDS[candidate.verdict]
        lines = [(candidate.name, 16, INK), (f"{candidate.distance:.3f}", 15, FAINT), (verdict, 14, color)]
        tiles.append((tile(image, 168, color), lines))
    return draw_grid(tiles, min(6, len(tiles)), 16, f"Threshold {candidates[0][1].threshold:.3f} {meaning}")


def draw_batch(images, names):
    """Return a PIL image of uint8 arrays (N, H, W, 3), each with its name."""
    tiles = [(tile(image, 112), [(name, 13, INK)]) for image, name in zip(images, names)]
    return draw_grid(tiles, min(8, len(tiles)), 6)


def draw_errors(errors, threshold):
    """Return a PIL image of pairs of each kind of error.

    errors: {kind: (number of such pairs, the pairs to show as [(first array, second array, distance, caption)])}.
    """
    title = "; ".join(f"{kind}: {len(pairs)} of {count}" for kind, (count, pairs) in errors.items())
    tiles = []
    for kind, (_, pairs) in errors.items():
        for first, second, distance, caption in pairs:
            pair = Image.fromarray(np.hstack([first, second])).resize((240, 120), Image.Resampling.BICUBIC)
            tiles.append((pair, [(f"{kind}: {distance:.3f}", 14, RED), (caption, 12, FAINT)]))
    tiles = tiles or [(Image.new("RGB", (240, 120), PAPER), [])]
    return draw_grid(tiles, 4, 20, f"{title}; L2 distance, threshold {threshold:.3f}")


def draw_faces(found):
    """Return a PIL image of the photo of a face_crop.CroppedFace: its faces numbered, this one with its landmarks."""
    canvas, scale = enlarge(found.image, [face.box for face in found.faces], legible=40, longest=(336, 1008))
    radius = 1 + min(found.face.box[2:]) * scale / 60
    for x, y in (found.face.landmarks + 0.5) * scale:
        ImageDraw.Draw(canvas).ellipse((x - radius, y - radius, x + radius, y + radius), fill=LIME)
    labels = [(face.box * scale, str(number), LIME if number == found.number else PAPER, INK)
              for number, face in enumerate(found.faces, 1)]
    draw_labels(canvas, sorted(labels, key=lambda label: label[2] == PAPER), 14)  # this face first, so it is on top
    return canvas


def draw_everybody(found, candidates):
    """Return a PIL image of a photo with a number, a name and the verdict's color at every face.

    found: what face_crop.FaceCrop.find_all() returned. candidates: the nearest arcface.Candidate of each.
    """
    canvas, scale = enlarge(found[0].image, [face.box for face in found], legible=96, longest=(672, 1600))
    names = {"same": "{}", "not sure": "not sure", "different": "unknown"}
    labels = [(face.box * scale, f"{number} {names[candidate.verdict].format(candidate.name)}",
               COLORS[candidate.verdict], PAPER)
              for number, (face, candidate) in enumerate(zip(found, candidates), 1)]
    draw_labels(canvas, labels, 16)
    return canvas


def enlarge(photo, boxes, legible, longest):
    """Return (a copy of a photo, its scale): the smaller the faces, the larger.

    legible: pixels that the smallest face should have. longest: the limits of the longest side.
    """
    side = max(photo.size)
    scale = np.clip(side * legible / min(min(box[2:]) for box in boxes), *longest) / side
    size = [max(1, round(length * scale)) for length in photo.size]
    return photo.resize(size, Image.Resampling.BICUBIC, reducing_gap=2), scale


def draw_labels(canvas, labels, size):
    """Draw a box and a label above it for each face. A label that would cover an earlier one moves down.

    labels: [(box (left, top, width, height), text, color of box and label, color of the text)]; the first is on top.
    """
    draw, taken = ImageDraw.Draw(canvas), []
    for box, _, color, _ in labels[::-1]:
        left, top, right, bottom = np.round([*box[:2], *box[:2] + box[2:]])
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=INK, width=4)  # shows on a light photo
        draw.rectangle((left, top, right, bottom), outline=color, width=2)
    for box, text, color, ink in labels:
        font, text = font_for(text, size)
        text = fit_text(text, font, max(200, box[2]))
        width, height = round(font.getlength(text)) + 8, size + 4
        left = max(0, min(round(box[0]) - 1, canvas.width - width))
        top = max(0, min(round(box[1]), canvas.height) - height)
        while any(abs(top - other_top) <= height and -width <= left - other_left <= other_width
                  for other_left, other_top, other_width in taken):
            top += 1
        taken.append((left, top, width))
        draw.rectangle((left, top, left + width, top + height), fill=color, outline=INK)
        draw_text(canvas, (left + width / 2 + 0.5, top + height / 2 + 1), text, size, ink)


def image_format(path):
    """Return the image format of a path's extension, as Pillow and matplotlib call it. Raises UserError."""
    try:
        return IMAGE_FORMATS[Path(path).suffix.lower()]
    except KeyError:
        raise UserError(f"cannot write {path}: give a name that ends in {', '.join(IMAGE_FORMATS)}") from None


def save_image(image, path):
    """Write a PIL image in the format of the path's extension. Raises UserError."""
    file_format = image_format(path)
    with atomic_write(path) as temporary:
        image.save(temporary, format=file_format, quality=95)
