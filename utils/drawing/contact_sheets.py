"""Pictures made of pictures, with Pillow alone, so that they need no screen and start fast."""
import bisect
import functools
import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.evaluation.thresholds import WORDS

INK, PAPER, GREEN, RED, GRAY, LIME = "#222222", "#ffffff", "#1a7f37", "#c62828", "#777777", "#30e060"
AMBER = "#b26a00"
COLORS = {"same": GREEN, "not sure": AMBER, "different": RED}
SIDE, LARGEST_SIDE = 336, 1008  # pixels of the longest side
LEGIBLE = 40                    # pixels that the smallest face should be wide, to be told from the others
TAG = 16                        # pixels of a number's height
# Chinese, Japanese and Korean, by file name: Pillow looks for them in the system's folders of fonts.
SYSTEM_FONTS = ("NotoSansCJK-Regular.ttc", "SourceHanSans.ttc", "wqy-microhei.ttc", "wqy-zenhei.ttc",  # Linux
                "DroidSansFallbackFull.ttf", "msyh.ttc", "simsun.ttc", "malgun.ttf",                   # Windows
                "PingFang.ttc", "Hiragino Sans GB.ttc", "Arial Unicode.ttf")                           # macOS


def fit_font(text, size):
    """-> (font, text): a font with all letters of the text; where there is none, the missing ones become \\uXXXX."""
    for name in ("", *SYSTEM_FONTS):
        font = load_font(name, size)
        if font is not None and not any(lacks(font, letter) for letter in text):
            return font, text
    font = load_font("", size)
    return font, "".join(f"\\u{ord(letter):04x}" if lacks(font, letter) else letter for letter in text)


@functools.cache
def load_font(name, size):
    """A font of the system, None where it has no such one; "": DejaVu Sans, which comes with matplotlib."""
    if not name:
        package = importlib.util.find_spec("matplotlib")  # importing it would take half as long as importing torch
        name = package and Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if not name or not name.is_file():
            return ImageFont.load_default(size)  # Latin letters only, no accents
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


@functools.cache
def lacks(font, letter):
    """Whether the font draws its sign for a missing letter; U+FFFF is no letter, so every font lacks it."""
    if not letter.isprintable():  # control characters, and the surrogates that stand for bytes that are no UTF-8
        return True
    if letter == " ":  # as empty as the missing sign of some fonts
        return False
    mask, missing = font.getmask(letter), font.getmask("\uffff")
    return mask.size == missing.size and bytes(mask) == bytes(missing)


def shorten(text, font, width):
    """The text, with its end replaced by an ellipsis where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    kept = bisect.bisect(range(1, len(text) + 1), width, key=lambda kept: font.getlength(text[:kept] + "…"))
    return text[:kept] + "…"


def tile(image, size, frame=None):
    """An array or PIL image -> PIL image (size, size), with a frame of that color drawn on its edge."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image = image.resize((size, size), Image.Resampling.BICUBIC)
    if frame:
        ImageDraw.Draw(image).rectangle((0, 0, size - 1, size - 1), outline=frame, width=max(2, size // 60))
    return image


def draw_text(canvas, position, text, size, color=INK, anchor="mm", width=None):
    """Write text onto a PIL image, cut to `width` pixels; anchor "mm" centres it on the position, "lm" starts there."""
    font, text = fit_font(text, size)
    ImageDraw.Draw(canvas).text(position, shorten(text, font, width or canvas.width), color, font, anchor)


def draw_comparison(images, match, meaning="", photographs=(None, None)):
    """Two uint8 arrays, an arcface.Match, what its threshold is -> a PIL picture of both with the verdict below.

    photographs: what draw_faces() made of the ones that were cut from a photograph; it stands above them.
    """
    size, gap, foot = 336, 16, 84
    columns = [max(size, photograph.width if photograph else 0) for photograph in photographs]
    above = max(photograph.height + gap if photograph else 0 for photograph in photographs)
    color = COLORS[match.verdict]
    canvas = Image.new("RGB", (sum(columns) + 3 * gap, above + size + gap + foot), PAPER)
    left = gap
    for image, photograph, column in zip(images, photographs, columns):
        middle = left + column // 2
        canvas.paste(tile(image, size, color), (middle - size // 2, above + gap))
        if photograph:
            canvas.paste(photograph, (middle - photograph.width // 2, above - photograph.height))
        elif above:
            draw_text(canvas, (middle, above // 2), "taken as an aligned crop", 16, GRAY)
        left += column + gap
    middle, foot = canvas.width // 2, above + size + gap
    draw_text(canvas, (middle, foot + 30), WORDS[match.verdict].capitalize(), 26, color)
    sign = "<" if match.same else "≥"
    sure = f"{match.unsure[0]:.3f}  ≤  " if match.verdict == "not sure" else ""
    figures = f"{sure}Distance {match.distance:.3f}  {sign}  threshold {match.threshold:.3f} {meaning}"
    draw_text(canvas, (middle, foot + 62), figures, 16)
    return canvas


def draw_candidates(query, candidates, meaning, columns=5):
    """A uint8 array, [(uint8 array, arcface.Candidate)], what their threshold is -> a PIL strip of query and people."""
    size, gap, caption, foot = 168, 16, 78, 34
    row, left = size + caption, size + 3 * gap
    shown = min(columns, len(candidates))
    rows = -(-len(candidates) // columns)
    canvas = Image.new("RGB", (left + max(2, shown) * (size + gap), gap + rows * row + foot), PAPER)
    canvas.paste(tile(query, size, INK), (gap, gap))
    draw_text(canvas, (gap + size // 2, gap + size + 16), "Who is this?", 16)
    for place, (image, candidate) in enumerate(candidates):
        x, y = left + place % columns * (size + gap), gap + place // columns * row
        color = COLORS[candidate.verdict]
        canvas.paste(tile(image, size, color), (x, y))
        middle = x + size // 2
        draw_text(canvas, (middle, y + size + 16), candidate.name, 16, width=size)
        draw_text(canvas, (middle, y + size + 38), f"{candidate.distance:.3f}", 15, GRAY)
        draw_text(canvas, (middle, y + size + 57), WORDS[candidate.verdict], 14, color)
    threshold = f"Threshold {candidates[0][1].threshold:.3f} {meaning}"
    draw_text(canvas, (gap, canvas.height - foot // 2), threshold, 14, GRAY, "lm")
    return canvas


def draw_batch(images, names, columns=8):
    """uint8 arrays (N, H, W, 3) and a caption each -> a PIL picture of the grid."""
    size, gap, caption = 112, 6, 20
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    column, row = size + gap, size + caption + gap
    canvas = Image.new("RGB", (columns * column + gap, rows * row + gap), PAPER)
    for place, (image, name) in enumerate(zip(images, names)):
        left, top = gap + place % columns * column, gap + place // columns * row
        canvas.paste(tile(image, size), (left, top))
        draw_text(canvas, (left + size // 2, top + size + caption // 2), name, 13, width=size)
    return canvas


def draw_errors(errors, threshold):
    """{kind: (number of such pairs, [(first array, second array, distance, caption)])} -> a PIL contact sheet.

    A block of pairs for each kind, which says how many of how many it shows.
    """
    size, gap, caption_height, head = 120, 20, 46, 66
    pair, row, columns = 2 * size + gap, size + caption_height, 2
    block = columns * pair + gap
    rows = max(-(-len(pairs) // columns) for _, pairs in errors.values())
    canvas = Image.new("RGB", (block * len(errors), head + row * rows), PAPER)
    for place, (kind, (number_of_pairs, pairs)) in enumerate(errors.items()):
        left = gap + place * block
        shown = f"{len(pairs)} of {number_of_pairs}" if pairs else "none"
        draw_text(canvas, (left, 22), f"{kind}: {shown}", 19, anchor="lm")
        draw_text(canvas, (left, 46), f"L2 distance, threshold {threshold:.3f}", 13, GRAY, anchor="lm")
        for number, (first, second, distance, caption) in enumerate(pairs):
            x, y = left + number % columns * pair, head + number // columns * row
            canvas.paste(tile(first, size), (x, y))
            canvas.paste(tile(second, size), (x + size, y))
            draw_text(canvas, (x, y + size + 13), f"{distance:.3f}", 15, RED, anchor="lm")
            draw_text(canvas, (x, y + size + 31), caption, 12, GRAY, "lm", width=2 * size)
    return canvas


def draw_faces(look):
    """A face_crop.Look at a photograph -> a PIL picture of it; the smaller the faces, the larger it is drawn."""
    longest = max(look.image.size)
    smallest = min(min(face.box[2:]) for face in look.faces)
    scale = min(max(SIDE, longest * LEGIBLE / smallest), LARGEST_SIDE) / longest
    canvas = look.image.resize([max(1, round(side * scale)) for side in look.image.size],
                               Image.Resampling.BICUBIC, reducing_gap=2)
    faces = [(number, face.box * scale, LIME if np.array_equal(face.box, look.face.box) else "white")
             for number, face in enumerate(look.faces, 1)]
    faces.sort(key=lambda face: face[2] == LIME)  # the one used is drawn last, so that no other covers it
    for _, box, color in faces:
        draw_box(canvas, box, color)
    draw_landmarks(canvas, (look.face.landmarks + 0.5) * scale, 1 + min(look.face.box[2:]) * scale / 60)
    for number, box, color in faces:
        draw_number(canvas, number, box, color)
    return canvas


def draw_box(canvas, box, color):
    """A box (x, y, width, height), with a dark line around it that shows on a light photograph."""
    left, top, right, bottom = np.round([*box[:2], *box[:2] + box[2:]])
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=INK, width=4)
    draw.rectangle((left, top, right, bottom), outline=color, width=2)


def draw_landmarks(canvas, landmarks, radius):
    for x, y in landmarks:
        ImageDraw.Draw(canvas).ellipse((x - radius, y - radius, x + radius, y + radius), fill=LIME)


def draw_number(canvas, number, box, color):
    """The number on a tag of the box's color, which stands on the box or, at the photograph's upper edge, in it."""
    width, height = 4 + 10 * len(str(number)), TAG
    left = np.clip(round(box[0]) - 1, 0, max(0, canvas.width - width))
    top = np.clip(round(box[1]) - height, 0, max(0, canvas.height - height))
    ImageDraw.Draw(canvas).rectangle((left, top, left + width, top + height), fill=color, outline=INK)
    draw_text(canvas, (left + width / 2 + 0.5, top + height / 2 + 1), str(number), 14, width=width)


def show_image(image):
    """Open a window with a PIL picture and wait until it is closed; without a screen do nothing."""
    if sys.platform not in ("win32", "darwin") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return
    import matplotlib.pyplot as plt  # here: it takes longer to import than the comparison takes
    if plt.get_backend().lower() == "agg":
        return  # a screen, but no toolkit to draw on it
    figure = plt.figure(figsize=(image.width / 100, image.height / 100))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(image)
    axes.axis("off")
    plt.show()
    plt.close(figure)
