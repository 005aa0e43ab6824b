"""Pictures made of pictures, with Pillow alone, so that they need no screen and start fast."""
import os
import sys

from PIL import Image, ImageDraw, ImageFont

INK, PAPER, GREEN, RED, GREY = "#222222", "#ffffff", "#1a7f37", "#c62828", "#777777"


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


def draw_comparison(images, match):
    """Two uint8 arrays and an arcface.Match -> a PIL picture of both with the verdict below."""
    size, gap, foot = 336, 16, 84
    colour = GREEN if match.same else RED
    canvas = Image.new("RGB", (2 * size + 3 * gap, size + gap + foot), PAPER)
    for place, image in enumerate(images):
        canvas.paste(tile(image, size, colour), (gap + place * (size + gap), gap))
    middle = canvas.width // 2
    write(canvas, (middle, size + gap + 30), "Same person" if match.same else "Different people", 26, colour)
    sign = "<" if match.same else "≥"
    figures = f"Distance: {match.distance:.3f}  {sign}  threshold {match.threshold:.3f}"
    write(canvas, (middle, size + gap + 62), figures, 18)
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
