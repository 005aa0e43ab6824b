"""From a picture as it comes to the picture of one face that preprocess() takes."""
import os
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from utils.faces.alignment import align
from utils.faces.images import open_image
from utils.machine.errors import UserError


class Look(NamedTuple):
    """What was seen in a picture. Without faces it was taken as it is, and is its own crop."""
    image: object        # RGB PIL image, upright
    crop: object         # RGB PIL image for preprocess()
    faces: list = []     # of a photograph, the largest first
    face: object = None  # the one of the crop, with refined landmarks


class FaceCrop:
    """`crop(source)` -> an RGB PIL image: the `face`-th largest face of a photograph, aligned; else the picture itself.

    align: True: every picture is a photograph. False: none is. "auto": what looks_aligned() is taken as it is, and so
    is everything where the face detector is not to be had, which is said once.
    Raises ValueError for other settings. The detector is made for the first photograph, so that aligned crops never
    wait for OpenCV.
    """

    def __init__(self, align="auto", face=1):
        if align not in ("auto", True, False) or face < 1:
            raise ValueError(f"align={align!r}, face={face!r}: choose 'auto', True or False, and a face from 1")
        self.align, self.face = align, face
        self.detector, self.lock = None, threading.Lock()

    def __call__(self, source):
        return self.look(source).crop

    def look(self, source):
        """What open_image takes -> Look.

        Raises UserError, which names the file, for a photograph with too few faces; with align=True also for want of
        the detector.
        """
        image = open_image(source)
        if (self.align == "auto" and looks_aligned(image.size)) or not self.has_detector():
            return Look(image, image)
        faces = self.detector.detect(image)
        if len(faces) < self.face:
            name = source if isinstance(source, (str, os.PathLike)) else "the picture"
            if not faces:
                raise UserError(f"{name} shows no face: give another, or --align no if it is an aligned crop")
            raise UserError(f"{name} shows {len(faces)} face(s), not {self.face}: give --face 1 to {len(faces)}")
        face = self.detector.refine(image, faces[self.face - 1])
        return Look(image, align(image, face.landmarks), faces, face)

    def has_detector(self):
        with self.lock:
            if self.align is not False and self.detector is None:
                from utils.faces.detector import FaceDetector  # here: aligned crops need neither it nor what it imports
                try:
                    self.detector = FaceDetector()
                except UserError as error:
                    if self.align is True:
                        raise
                    print(f"alignment is off, photographs are taken as aligned crops: {error}")
                    self.align = False
            return self.detector is not None


def looks_aligned(size):
    """Whether a picture of (width, height) is an aligned crop by its size.

    People's are 112x112, 96x112, 96x96 or 128x128. Larger crops, such as the 250x250 of LFW and CASIA-WebFace or
    VGGFace2's, show more than the template and are photographs here.
    """
    return max(size) <= 128 and max(size) <= 1.25 * min(size)


def detector_installed():
    """Whether photographs will be aligned, told without importing OpenCV."""
    from utils.faces.detector import MODEL_PATH
    return find_spec("cv2") is not None and Path(MODEL_PATH).is_file()
