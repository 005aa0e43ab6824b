"""Pictures made of pictures, with Pillow alone, so that they need no screen and start fast."""
import os
import sys

from PIL import Image, ImageDraw

from utils.drawing.fonts import fit_font, shorten
from utils.evaluation.thresholds import WORDS

INK, PAPER, GREEN, RED, GREY, LIME = "#222222", "#ffffff", "#1a7f37", "#c62828", "#777777", "#30e060"
AMBER = "#b26a00"
COLOURS = {"same": GREEN, "not sure": AMBER, "different": RED}


def tile(image, size, frame=None):
    """An array or PIL image -> PIL image (size, size), with a frame of that colour drawn on its edge."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image = image.resize((size, size), Image.Resampling.BICUBIC)
    if frame:
        ImageDraw.Draw(image).rectangle((0, 0, size - 1, size - 1), outline=frame, width=max(2, size // 60))
    return image


def write(canvas, position, text, size, colour=INK, anchor="mm", width=None):
    """Write text onto a PIL image, cut to `width` pixels; anchor "mm" centres it on the position, "lm" starts there."""
    font, text = fit_font(text, size)
    ImageDraw.Draw(canvas).text(position, shorten(text, font, width or canvas.width), colour, font, anchor)


def draw_comparison(images, match, meaning="", photographs=(None, None)):
    """Two uint8 arrays, an arcface.Match, what its threshold is -> a PIL picture of both with the verdict below.

    photographs: what draw_faces() made of the ones that were cut from a photograph; it stands above them.
    """
    size, gap, foot = 336, 16, 84
    columns = [max(size, photograph.width if photograph else 0) for photograph in photographs]
    above = max(photograph.height + gap if photograph else 0 for photograph in photographs)
    colour = COLOURS[match.verdict]
    canvas = Image.new("RGB", (sum(columns) + 3 * gap, above + size + gap + foot), PAPER)
    left = gap
    for image, photograph, column in zip(images, photographs, columns):
        middle = left + column // 2
        canvas.paste(tile(image, size, colour), (middle - size // 2, above + gap))
        if photograph:
            canvas.paste(photograph, (middle - photograph.width // 2, above - photograph.height))
        elif above:
            write(canvas, (middle, above // 2), "taken as an aligned crop", 16, GREY)
        left += column + gap
    middle, foot = canvas.width // 2, above + size + gap
    write(canvas, (middle, foot + 30), WORDS[match.verdict].capitalize(), 26, colour)
    sign = "<" if match.same else "≥"
    sure = f"{match.unsure[0]:.3f}  ≤  " if match.verdict == "not sure" else ""
    figures = f"{sure}Distance {match.distance:.3f}  {sign}  threshold {match.threshold:.3f} {meaning}"
    write(canvas, (middle, foot + 62), figures, 16)
    return canvas


def draw_candidates(query, candidates, meaning, columns=5):
    """A uint8 array, [(uint8 array, arcface.Candidate)], what their threshold is -> a PIL strip of query and people."""
    size, gap, caption, foot = 168, 16, 78, 34
    row, left = size + caption, size + 3 * gap
    shown = min(columns, len(candidates))
    rows = -(-len(candidates) // columns)
    canvas = Image.new("RGB", (left + max(2, shown) * (size + gap), gap + rows * row + foot), PAPER)
    canvas.paste(tile(query, size, INK), (gap, gap))
    write(canvas, (gap + size // 2, gap + size + 16), "Who is this?", 16)
    for place, (image, candidate) in enumerate(candidates):
        x, y = left + place % columns * (size + gap), gap + place // columns * row
        colour = COLOURS[candidate.verdict]
        canvas.paste(tile(image, size, colour), (x, y))
        middle = x + size // 2
        write(canvas, (middle, y + size + 16), candidate.name, 16, width=size)
        write(canvas, (middle, y + size + 38), f"{candidate.distance:.3f}", 15, GREY)
        write(canvas, (middle, y + size + 57), WORDS[candidate.verdict], 14, colour)
    threshold = f"Threshold {candidates[0][1].threshold:.3f} {meaning}"
    write(canvas, (gap, canvas.height - foot // 2), threshold, 14, GREY, "lm")
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
        write(canvas, (left + size // 2, top + size + caption // 2), name, 13, width=size)
    return canvas


def draw_mistakes(mistakes, threshold):
    """{kind: (number of such pairs, [(first array, second array, distance, caption)])} -> a PIL contact sheet.

    A block of pairs for each kind, which says how many of how many it shows.
    """
    size, gap, caption_height, head = 120, 20, 46, 66
    pair, row, columns = 2 * size + gap, size + caption_height, 2
    block = columns * pair + gap
    rows = max(-(-len(pairs) // columns) for _, pairs in mistakes.values())
    canvas = Image.new("RGB", (block * len(mistakes), head + row * rows), PAPER)
    for place, (kind, (number_of_pairs, pairs)) in enumerate(mistakes.items()):
        left = gap + place * block
        shown = f"{len(pairs)} of {number_of_pairs}" if pairs else "none"
        write(canvas, (left, 22), f"{kind}: {shown}", 19, anchor="lm")
        write(canvas, (left, 46), f"L2 distance, threshold {threshold:.3f}", 13, GREY, anchor="lm")
        for number, (first, second, distance, caption) in enumerate(pairs):
            x, y = left + number % columns * pair, head + number // columns * row
            canvas.paste(tile(first, size), (x, y))
            canvas.paste(tile(second, size), (x + size, y))
            write(canvas, (x, y + size + 13), f"{distance:.3f}", 15, RED, anchor="lm")
            write(canvas, (x, y + size + 31), caption, 12, GREY, "lm", width=2 * size)
    return canvas


def show(picture):
    """Open a window with a PIL picture and wait until it is closed; without a screen do nothing."""
    if sys.platform not in ("win32", "darwin") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return
    import matplotlib.pyplot as plt  # here: it takes longer to import than the comparison takes
    if plt.get_backend().lower() == "agg":
        return  # a screen, but no toolkit to draw on it
    figure = plt.figure(figsize=(picture.width / 100, picture.height / 100))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(picture)
    axes.axis("off")
    plt.show()
    plt.close(figure)
