"""Any image to the crop of one face that preprocess() takes, with what a user should know about it."""
import functools
from typing import NamedTuple

import numpy as np

from utils.common.errors import UserError
from utils.faces.alignment import TEMPLATE, TEMPLATE_SIZE, align
from utils.faces.detector import FaceDetector
from utils.faces.images import image_name, open_image

# A network gives nearly the same embedding to every image without a face, so a black image and noise are "one person".
# This is an L2 distance to the nearest embedding of blank_images(). All of LFW is farther away. All of 1,500 images of
# one color, noise, text, shapes and landscapes are nearer, and so are 2% of 5,900 harder faces. A nearer image is
# therefore checked again, by is_blank_or_noise() and then by FaceDetector.shows_face().
NEAR_BLANK = 1.05

# The gray levels of a face have a standard deviation of at least 19, and its neighboring pixels correlate by at least
# 0.79 (13,600 faces); noise by at most 0.02, lines of text by 0.4.
LEAST_DEVIATION, LEAST_CORRELATION = 4, 0.6

LEAST_EYE_DISTANCE = 18  # pixels, half of the crop's: a smaller face is enlarged more than twice
LEAST_SCORE = 0.7        # of 387 LFW photos none scores below 0.87, of 120 masked faces 1% below 0.72
LIKE_SIZE = 0.5          # of the area of the face that counts: a second face this large is in 9% of LFW photos

# Mean distance of the landmarks from the template in pixels, the median over about 60 images of a set. Aligned sets:
# 2.9 (LFW) to 5.9 (with masks). Not aligned: 8.9 (the middle of raw LFW) to 15.1 (crops as MTCNN makes them).
ALIGNED = 7.5


class NoDetector(UserError):
    """The face detector is not available: no image is to blame, and no photo can be used."""


class CroppedFace(NamedTuple):
    """One face of an image. An aligned crop is taken as it is: `crop` is `image`, and nothing was detected."""
    image: object        # RGB PIL image, rotated so that its faces are upright
    crop: object         # RGB PIL image for preprocess()
    faces: list = []     # all faces of a photo, in the order in which --face counts them
    number: int = 0      # of this face, from 1
    face: object = None  # this face with refined landmarks; None for an aligned crop
    rotated: int = 0     # degrees clockwise, from the given image to `image`
    name: str = "the image"  # in messages

    def select(self, number):
        """Return this photo with the face of that number, from 1."""
        face = shared_detector().refine(self.image, self.faces[number - 1])
        return self._replace(crop=align(self.image, face.landmarks), number=number, face=face)

    @property
    def box(self):
        """The face's box (left, top, width, height) in `image`; all of an aligned crop."""
        return np.array((0, 0, *self.image.size), np.float64) if self.face is None else self.face.box

    @property
    def doubts(self):
        """Why a verdict on this face must be "not sure", a list of phrases; `remarks` begins with them."""
        if self.face is None:
            return []
        doubts, eyes = [], np.linalg.norm(self.face.landmarks[1] - self.face.landmarks[0])
        if eyes < LEAST_EYE_DISTANCE:
            doubts.append(f"only {eyes:.0f} pixels between the eyes")
        if self.face.score < LEAST_SCORE:
            doubts.append(f"perhaps no face (detector score {self.face.score:.2f})")
        return doubts

    @property
    def remarks(self):
        """What a user should know about this face, a list of phrases that begin with its doubts."""
        others = [f"{len(self.faces)} faces, number {self.number} counts"] if len(self.faces) > 1 else []
        rotated = [f"rotated by {self.rotated} degrees clockwise"] if self.rotated else []
        return self.doubts + others + rotated

    @property
    def ambiguous(self):
        """Whether another face of the photo is of like size, so that a gallery cannot know which one is meant."""
        return sum(face.area >= LIKE_SIZE * self.face.area for face in self.faces) > 1


class FaceCrop:
    """Finds and aligns one face of a photo, or takes an aligned crop as it is.

    align: True: every image is a photo. False: none is. "auto": all but those that has_crop_size().
    face: which face of a photo, 1 for the main one (FaceDetector.detect).
    Raises ValueError for other settings. The detector is made for the first photo, or crop near blank.
    """

    def __init__(self, align="auto", face=1):
        if align not in ("auto", True, False) or not isinstance(face, int) or face < 1:
            raise ValueError(f"align={align!r}, face={face!r}: choose 'auto', True or False, and a face from 1")
        self.align, self.face = align, face

    def find(self, source):
        """Return the CroppedFace of what open_image takes. A CroppedFace is returned as it is.

        Raises UserError for a photo with too few faces, and NoDetector for a photo if there is no detector.
        """
        if isinstance(source, CroppedFace):
            return source
        photo = self.detect(source)
        if not photo.faces and self.face == 1:
            return photo
        if len(photo.faces) < self.face:
            raise UserError(f"{photo.name} has no face {self.face}, only {len(photo.faces) or 1}: give another --face")
        return photo.select(self.face)

    def find_all(self, source):
        """Return a CroppedFace for each face, from left to right, as if it were alone. Raises as find()."""
        photo = self.detect(source)
        if not photo.faces:
            return [photo]
        faces = sorted(photo.faces, key=lambda face: face.box[0] + face.box[2] / 2)
        return [photo._replace(faces=[face], name=f"{photo.name}, face {number}").select(1)
                for number, face in enumerate(faces, 1)]

    def detect(self, source):
        """Return a CroppedFace in which no face is selected yet. It has no faces if the image is an aligned crop."""
        image, name = open_image(source), image_name(source)
        if not self.align or (self.align == "auto" and has_crop_size(image.size)):
            return CroppedFace(image, image, name=name)
        image, faces, rotated = detector_for(name).detect_upright(image)
        if not faces:
            raise UserError(f"{name} shows no face: give another, or --align no if it is an aligned crop")
        return CroppedFace(image, image, faces, rotated=rotated, name=name)

    def check_shows_face(self, face):
        """Raise UserError, which names the file, if the crop of a CroppedFace shows no face.

        With align=False only blank and noise images are rejected; no detector runs.
        """
        if is_blank_or_noise(face.crop) or (self.align and not detector_for(face.name).shows_face(face.crop)):
            raise UserError(f"{face.name} shows no face: give a photo of one, or one aligned to the 112x112 template")


@functools.cache
def shared_detector():
    """Return the FaceDetector of this process. Raises NoDetector."""
    try:
        return FaceDetector()
    except UserError as error:
        raise NoDetector(error) from None


def detector_for(name):
    """Return the FaceDetector of this process. Raises NoDetector, which names the image that needs it."""
    try:
        return shared_detector()
    except NoDetector as error:
        raise NoDetector(f"{name} needs face detection: {error}, or give --align no if it is an aligned crop") from None


def has_crop_size(size):
    """Return whether an image of (width, height) is small and square enough for an aligned crop.

    Larger crops, such as those of LFW, CASIA-WebFace and VGGFace2, show more than the template, so they get aligned.
    """
    return max(size) <= 128 and max(size) <= 1.25 * min(size)


def are_aligned(sources, most=24):
    """Return whether images show their faces where the template has them.

    Fewer than 2 * `most` of them are judged. If none shows a face, the answer is True. Raises NoDetector.
    """
    offsets = []
    for index in range(0, len(sources), max(1, len(sources) // most)):
        image = open_image(sources[index])
        for face in shared_detector().detect(image)[:1]:
            landmarks = shared_detector().refine(image, face).landmarks + 0.5 - np.divide(image.size, 2)
            scale = TEMPLATE_SIZE / max(image.size)
            offsets.append(np.linalg.norm(landmarks * scale - (TEMPLATE + 0.5 - TEMPLATE_SIZE / 2), axis=1).mean())
    return not offsets or bool(np.median(offsets) < ALIGNED)


def blank_images():
    """Return a black, a white and a gray image, uint8 (112, 112, 3) each."""
    return [np.full((112, 112, 3), level, np.uint8) for level in (0, 255, 128)]


def near_blank(embeddings, blanks):
    """Return the indices of embeddings (N, D) near those of blank_images() (3, D). All are L2-normalised."""
    return np.flatnonzero((embeddings @ blanks.T).max(1, initial=-1) > 1 - NEAR_BLANK ** 2 / 2).tolist()


def is_blank_or_noise(image):
    """Return whether an RGB PIL image has one gray level, or neighboring pixels (of 112x112) that do not match."""
    gray = np.asarray(image.convert("L").resize((112, 112)), np.float64)
    gray -= gray.mean()
    products = (gray[1:] * gray[:-1]).mean() + (gray[:, 1:] * gray[:, :-1]).mean()
    return gray.std() < LEAST_DEVIATION or products / 2 < LEAST_CORRELATION * gray.var()
