"""From a picture as it comes to the picture of one face that preprocess() takes."""
import threading
from typing import NamedTuple

import numpy as np

from utils.common.errors import UserError
from utils.faces.alignment import align
from utils.faces.images import name_of, open_image

# A network has much the same embedding for all that is no face, so that a black picture and noise are "one person".
# L2 distance to the nearest of the embeddings of blank_images(), by model_data/arcface_mobilefacenet.pth and by the
# published weights: of all 7,701 pictures of LFW 1.13 and 1.14 or more (a helmet with goggles: 0.76). Below NEAR_BLANK
# are all of 1,500 pictures of one colour, gradients, noise, checkerboards, stripes, text, shapes and landscapes, 99% of
# blurred noise, 90% and 97% of 1/f noise, 99% of pieces of backgrounds. Of 5,900 harder faces 2% are, and of those with
# masks a quarter. So what is near asks for a closer look: plain_or_noise(), then FaceDetector.shows_face().
NEAR_BLANK = 1.05

# A face deviates by 19 grey levels and more, and its neighbouring pixels correlate by 0.79 and more (the 13,600 faces
# above); noise by 0.02 at most, lines of text by 0.4.
LEAST_DEVIATION, LEAST_CORRELATION = 4, 0.6


class NoDetector(UserError):
    """What finds faces in photographs is not there: no picture's fault, and no picture is done without it."""


class Look(NamedTuple):
    """What was seen in a picture. Without faces it was taken as it is, and is its own crop."""
    image: object        # RGB PIL image, with its faces upright
    crop: object         # RGB PIL image for preprocess()
    faces: list = []     # of a photograph, the largest first
    face: object = None  # the one of the crop, with refined landmarks
    turned: int = 0      # degrees clockwise, from the picture as it came to `image`: 0, 90, 180 or 270


class FaceCrop:
    """`crop(source)` -> an RGB PIL image: the `face`-th largest face of a photograph, aligned; else the picture itself.

    align: True: every picture is a photograph. False: none is. "auto": all but what looks_aligned().
    `turned` holds {name of a photograph: degrees clockwise} of those whose faces were upright only then.
    Raises ValueError for other settings. The detector is made for the first photograph, so that aligned crops never
    wait for OpenCV.
    """

    def __init__(self, align="auto", face=1):
        if align not in ("auto", True, False) or face < 1:
            raise ValueError(f"align={align!r}, face={face!r}: choose 'auto', True or False, and a face from 1")
        self.align, self.face, self.turned = align, face, {}
        self.detector, self.lock = None, threading.Lock()

    def __call__(self, source):
        return self.look(source).crop

    def look(self, source):
        """What open_image takes -> Look.

        Raises UserError, which names the file, for a photograph with too few faces, and NoDetector for one where the
        face detector is not to be had.
        """
        image, name = open_image(source), name_of(source)
        if self.align is False or (self.align == "auto" and looks_aligned(image.size)):
            return Look(image, image)
        try:
            image, faces, turned = self.find_detector().detect_upright(image)
        except NoDetector as error:
            raise NoDetector(f"{name} is a photograph; {error}, or give --align no if it is an aligned crop") from None
        if len(faces) < self.face:
            if not faces:
                raise UserError(f"{name} shows no face: give another, or --align no if it is an aligned crop")
            shown, remedy = ("1 face", "1") if len(faces) == 1 else (f"{len(faces)} faces", f"1 to {len(faces)}")
            raise UserError(f"{name} shows {shown}, not {self.face}: give --face {remedy}")
        if turned:
            self.turned[name] = turned
        face = self.detector.refine(image, faces[self.face - 1])
        return Look(image, align(image, face.landmarks), faces, face, turned)

    def check_shows_face(self, source):
        """Raises UserError, which names the file, where its crop shows no face, or where that cannot be looked at.

        With align=False what is neither plain nor noise is the caller's to answer for.
        """
        name, crop = name_of(source), self(source)
        try:
            found = not plain_or_noise(crop) and (self.align is False or self.find_detector().shows_face(crop))
        except NoDetector as error:
            raise UserError(f"{name} may show no face, the network sees little in it; {error}, or give --align no if "
                            "it is one") from None
        if not found:
            raise UserError(f"{name} shows no face: give a photograph of one, or one aligned to the 112x112 template")

    def find_detector(self):
        """-> the FaceDetector, made when it is first needed. Raises NoDetector."""
        with self.lock:
            if self.detector is None:
                from utils.faces.detector import FaceDetector  # here: aligned crops need neither it nor what it imports
                try:
                    self.detector = FaceDetector()
                except UserError as error:
                    raise NoDetector(error) from None
            return self.detector


def faces_of_two(face):
    """A number, or one for each of two pictures -> (number, number). Raises ValueError for anything else."""
    faces = tuple(face) if isinstance(face, (tuple, list)) else (face, face)
    if len(faces) != 2 or any(type(number) is not int or number < 1 for number in faces):
        raise ValueError(f"face={face!r}: give a number from 1, or one for each of two pictures")
    return faces


def looks_aligned(size):
    """Whether a picture of (width, height) is an aligned crop by its size.

    People's are 112x112, 96x112, 96x96 or 128x128. Larger crops, such as the 250x250 of LFW and CASIA-WebFace or
    VGGFace2's, show more than the template and are photographs here.
    """
    return max(size) <= 128 and max(size) <= 1.25 * min(size)


def blank_images():
    """-> a black, a white and a grey picture, uint8 (112, 112, 3) each."""
    return [np.full((112, 112, 3), level, np.uint8) for level in (0, 255, 128)]


def near_blank(embeddings, blanks):
    """L2-normalised embeddings (N, D) and those of blank_images() (3, D) -> the numbers of the near ones, a list."""
    return np.flatnonzero((embeddings @ blanks.T).max(1, initial=-1) > 1 - NEAR_BLANK ** 2 / 2).tolist()


def plain_or_noise(image):
    """Whether an RGB PIL image, seen as 112x112 pixels, is of one grey level or has no two neighbours that belong."""
    grey = np.asarray(image.convert("L").resize((112, 112)), np.float64)
    grey -= grey.mean()
    products = (grey[1:] * grey[:-1]).mean() + (grey[:, 1:] * grey[:, :-1]).mean()
    return grey.std() < LEAST_DEVIATION or products / 2 < LEAST_CORRELATION * grey.var()
