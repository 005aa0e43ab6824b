"""Pictures made of pictures, with Pillow alone, so that they need no screen and start fast."""
import os
import sys

from PIL import Image, ImageDraw, ImageFont

INK, PAPER, GREEN, RED, GREY, LIME = "#222222", "#ffffff", "#1a7f37", "#c62828", "#777777", "#30e060"


def tile(image, size, frame=None):
    """An array or PIL image -> PIL image (size, size), with a frame of that colour drawn on its edge."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image = image.resize((size, size), Image.Resampling.BICUBIC)
    if frame:
        ImageDraw.Draw(image).rectangle((0, 0, size - 1, size - 1), outline=frame, width=max(2, size // 60))
    return image


def write(canvas, position, text, size, colour=INK, anchor="mm"):
    """Write text onto a PIL image; anchor "mm" centres it on the position, "lm" starts there."""
    ImageDraw.Draw(canvas).text(position, text, colour, ImageFont.load_default(size), anchor)


def draw_faces(look, size=336):
    """A face_crop.Look at a photograph -> a PIL picture (size, size): its faces boxed, the one used with landmarks."""
    scale = size / max(look.image.size)
    inner = [max(1, round(side * scale)) for side in look.image.size]
    corner = tuple((size - side) // 2 for side in inner)
    canvas = Image.new("RGB", (size, size), PAPER)
    canvas.paste(look.image.resize(inner, Image.Resampling.BICUBIC, reducing_gap=2), corner)
    draw = ImageDraw.Draw(canvas)
    boxes = [(face.box, "white", 1) for face in look.faces] + [(look.face.box, LIME, 2)]
    for box, colour, width in boxes:
        low, high = box[:2] * scale + corner, (box[:2] + box[2:]) * scale + corner
        draw.rectangle((*low, *high), outline=colour, width=width)
    radius = 1 + min(look.face.box[2:]) * scale / 60
    for x, y in (look.face.landmarks + 0.5) * scale + corner:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=LIME)
    return canvas


def draw_comparison(images, match, photographs=(None, None)):
    """Two uint8 arrays and an arcface.Match -> a PIL picture of both with the verdict below.

    photographs: what draw_faces() made of the ones that were cut from a photograph; it stands above them.
    """
    size, gap, foot = 336, 16, 84
    above = size + gap if any(photographs) else 0
    colour = GREEN if match.same else RED
    canvas = Image.new("RGB", (2 * size + 3 * gap, above + size + gap + foot), PAPER)
    for place, (image, photograph) in enumerate(zip(images, photographs)):
        left = gap + place * (size + gap)
        canvas.paste(tile(image, size, colour), (left, above + gap))
        if photograph:
            canvas.paste(photograph, (left, gap))
        elif above:
            write(canvas, (left + size // 2, above // 2), "taken as an aligned crop", 16, GREY)
    middle, foot = canvas.width // 2, above + size + gap
    write(canvas, (middle, foot + 30), "Same person" if match.same else "Different people", 26, colour)
    sign = "<" if match.same else "≥"
    figures = f"Distance: {match.distance:.3f}  {sign}  threshold {match.threshold:.3f}"
    write(canvas, (middle, foot + 62), figures, 18)
    return canvas


def draw_batch(images, names, columns=8):
    """uint8 arrays (N, H, W, 3) and a caption each -> a PIL picture of the grid."""
    size, caption = 112, 20
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (min(columns, len(images)) * (size + 4) + 4, rows * (size + caption + 4) + 4), PAPER)
    for place, (image, name) in enumerate(zip(images, names)):
        left, top = place % columns * (size + 4) + 4, place // columns * (size + caption + 4) + 4
        canvas.paste(tile(image, size), (left, top))
        write(canvas, (left + size // 2, top + size + caption // 2), name, 13)
    return canvas


def draw_mistakes(mistakes, threshold):
    """{title: [(first array, second array, distance, caption)]} -> a PIL contact sheet, a column of pairs per title."""
    size, gap, row, head = 112, 8, 150, 56
    column = 2 * size + 120 + 3 * gap
    longest = max(len(pairs) for pairs in mistakes.values())
    canvas = Image.new("RGB", (column * len(mistakes) + gap, head + row * max(longest, 1) + gap), PAPER)
    for place, (title, pairs) in enumerate(mistakes.items()):
        left = gap + place * column
        write(canvas, (left, 18), title, 18, anchor="lm")
        write(canvas, (left, 40), f"threshold {threshold:.3f}", 14, GREY, anchor="lm")
        for number, (first, second, distance, caption) in enumerate(pairs):
            top = head + number * row
            canvas.paste(tile(first, size), (left, top))
            canvas.paste(tile(second, size), (left + size + gap, top))
            write(canvas, (left + 2 * size + 2 * gap, top + size // 2), f"{distance:.3f}", 20, RED, anchor="lm")
            write(canvas, (left, top + size + 14), caption, 13, GREY, anchor="lm")
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
