"""A photograph with its faces found: each boxed and numbered as --face counts them, the one used with its landmarks."""
import numpy as np
from PIL import Image, ImageDraw

from utils.drawing.pictures import INK, LIME, write

SIDE, LARGEST_SIDE = 336, 1008  # pixels of the longest side
LEGIBLE = 40                    # pixels that the smallest face should be wide, to be told from the others
TAG = 16                        # pixels of a number's height


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
    for _, box, colour in faces:
        draw_box(canvas, box, colour)
    draw_landmarks(canvas, (look.face.landmarks + 0.5) * scale, 1 + min(look.face.box[2:]) * scale / 60)
    for number, box, colour in faces:
        draw_number(canvas, number, box, colour)
    return canvas


def draw_box(canvas, box, colour):
    """A box (x, y, width, height), with a dark line around it that shows on a light photograph."""
    left, top, right, bottom = np.round([*box[:2], *box[:2] + box[2:]])
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=INK, width=4)
    draw.rectangle((left, top, right, bottom), outline=colour, width=2)


def draw_landmarks(canvas, landmarks, radius):
    for x, y in landmarks:
        ImageDraw.Draw(canvas).ellipse((x - radius, y - radius, x + radius, y + radius), fill=LIME)


def draw_number(canvas, number, box, colour):
    """The number on a tag of the box's colour, which stands on the box or, at the photograph's upper edge, in it."""
    width, height = 4 + 10 * len(str(number)), TAG
    left = np.clip(round(box[0]) - 1, 0, max(0, canvas.width - width))
    top = np.clip(round(box[1]) - height, 0, max(0, canvas.height - height))
    ImageDraw.Draw(canvas).rectangle((left, top, left + width, top + height), fill=colour, outline=INK)
    write(canvas, (left + width / 2 + 0.5, top + height / 2 + 1), str(number), 14, width=width)
