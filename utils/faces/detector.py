"""Faces in photos and their five landmarks, by OpenCV's YuNet.

Wu et al. 2023, "YuNet: A Tiny Millisecond-level Face Detector", Machine Intelligence Research 20.
"""
import threading
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from utils.common.errors import UserError, first_line
from utils.common.files import download, locate

GET_OPENCV = 'pip install "opencv-python-headless>=5"'
MODEL_PATH = "model_data/face_detection_yunet_2026may.onnx"
# By commit: OpenCV's model zoo removes a model from its main branch when the next one comes.
MODEL_URL = ("https://media.githubusercontent.com/media/opencv/opencv_zoo/47534e27c9851bb1128ccc0102f1145e27f23f98/"
             "models/face_detection_yunet/face_detection_yunet_2026may.onnx")
MODEL_SHA256 = "ebafce4e3c118d6554634be5c27ab333b4c047a9a8c3faf1d7cf93101c22f0f0"

# YuNet finds faces 20 to 800 pixels high. So a photo is searched twice: with 640 pixels on its longer side, for a
# face that fills it, and with 1280, where a face of a large group still has 20.
LONGEST_SIDES = 640, 1280
SCORE = 0.6      # finds the main face of all 2,320 LFW photos; faces below 20 pixels' height score less
SAME_FACE = 0.3  # boxes that overlap more (intersection over union) are one face

# YuNet's landmarks vary by a tenth of the eye distance with the size of the face and from one box to the next. refine()
# crops the face with a margin, resizes it to VIEW pixels and detects again, in the crop and in its horizontal flip. It
# returns the mean over all boxes that overlap the face. The median distance from a raw LFW image's embedding to its
# hand-aligned crop's falls from 0.42 to 0.29, for 14 ms.
VIEW, MARGIN = 320, 1.25
FLIPPED_ORDER = [1, 0, 2, 4, 3]  # of the landmarks in a flipped image

# YuNet finds a rotated face too, with wrong landmarks and a lower score: medians on LFW are 0.93 upright, 0.75 and 0.83
# rotated. If no face reaches UPRIGHT_SCORE (4% of upright LFW), the other rotations are searched. One is taken if it
# scores at least LEAST_ROTATED, and ROTATION_GAIN more than the photo as it is. Of 2,320 LFW photos 99.8% are rotated
# correctly, and no upright one is rotated.
UPRIGHT_SCORE, ROTATION_GAIN, LEAST_ROTATED = 0.91, 0.025, 0.75
ROTATIONS = {90: Image.Transpose.ROTATE_270, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_90}

# The lowest score of 203 face crops in which the networks see little (face_crop.NEAR_BLANK) is 0.61, as they are or
# enlarged twice; 99% of 600 drawn images without a face score less than CROP_SCORE.
CROP_SIDES, CROP_SCORE = (112, 224), 0.5


class Face(NamedTuple):
    box: np.ndarray        # float64 (4,): left, top, width, height
    landmarks: np.ndarray  # float64 (5, 2), in pixels of the photo, in the order of alignment.TEMPLATE
    score: float           # 0 to 1

    @property
    def area(self):
        return self.box[2] * self.box[3]


class FaceDetector:
    """Finds faces. Threads may share it.

    Raises UserError if OpenCV 5 is not installed, or if the model is missing and cannot be downloaded.
    """

    def __init__(self, model_path=MODEL_PATH):
        try:
            import cv2
            if int(cv2.__version__.partition(".")[0]) < 5:
                raise ImportError(f"this is {cv2.__version__}")
        except Exception as error:  # a missing library, a NumPy that it was not built for, a folder called cv2
            raise UserError(f"no face detection without OpenCV 5 ({first_line(error)}): {GET_OPENCV}") from None
        download(MODEL_URL, locate(model_path), MODEL_SHA256)
        self.model_path = str(locate(model_path))
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # else YuNet warns of its own defaults
        self.cv2, self.per_thread = cv2, threading.local()

    def networks(self):
        """Return two FaceDetectorYN for this thread: one with a box per face, and one with every box."""
        if not hasattr(self.per_thread, "networks"):
            create = self.cv2.FaceDetectorYN.create
            self.per_thread.networks = [create(self.model_path, "", (VIEW, VIEW), score, same_face)
                                        for score, same_face in ((SCORE, SAME_FACE), (SCORE / 2, 1.0))]
        return self.per_thread.networks

    def detect(self, image):
        """Return a list of Face, the main one first. image: an RGB PIL image.

        The main face maximizes `area - 2 * distance ** 2`, with the distance to the middle of the image, as in
        insightface. On raw LFW (folds 1 to 3) it is the labeled person in all 2,320 photos, of which 471 show several
        faces. In 11 of them the largest face is another person.
        """
        rows = []
        for longest in LONGEST_SIDES:
            scale = min(1, longest / max(image.size))
            size = [max(1, round(side * scale)) for side in image.size]
            found = run(self.networks()[0], image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2))
            found[:, :14] *= np.tile(np.divide(image.size, size), 7)
            rows.append(found)
            if scale == 1:
                break
        rows = np.vstack(rows)
        rows = rows[list(self.cv2.dnn.NMSBoxes(rows[:, :4], rows[:, 14], SCORE, SAME_FACE))]
        faces = [Face(row[:4], row[4:14].reshape(5, 2), float(row[14])) for row in rows]

        def prominence(face):
            offset = face.box[:2] + face.box[2:] / 2 - np.divide(image.size, 2)
            return face.area - 2 * offset @ offset
        return sorted(faces, key=prominence, reverse=True)

    def detect_upright(self, image):
        """Return (RGB PIL image, its faces as detect() returns them, degrees that it was rotated clockwise)."""
        faces = self.detect(image)
        if best_score(faces) >= UPRIGHT_SCORE:
            return image, faces, 0
        rotated = {degrees: self.detect(image.transpose(transpose)) for degrees, transpose in ROTATIONS.items()}
        best = max(rotated, key=lambda degrees: best_score(rotated[degrees]))
        if best_score(rotated[best]) < max(best_score(faces) + ROTATION_GAIN, LEAST_ROTATED):
            return image, faces, 0
        return image.transpose(ROTATIONS[best]), rotated[best], best

    def shows_face(self, crop):
        """Return whether an aligned crop, an RGB PIL image, shows a face at all."""
        views = (crop.resize((side, side), Image.Resampling.BICUBIC) for side in CROP_SIDES)
        return any((run(self.networks()[1], view)[:, 14] >= CROP_SCORE).any() for view in views)

    def refine(self, image, face):
        """Return a Face with more exact landmarks. image: the RGB PIL image that it was found in."""
        side = max(1, round(MARGIN * face.box[2:].max()))
        corner = (face.box[:2] + (face.box[2:] - side) / 2).round().astype(int)
        view = image.crop((*corner, *corner + side)).resize((VIEW, VIEW), Image.Resampling.BICUBIC)
        scale = side / VIEW
        box = np.concatenate([(face.box[:2] - corner) / scale, face.box[2:] / scale])
        estimates = []
        for flipped, pixels in ((False, view), (True, ImageOps.mirror(view))):
            rows = run(self.networks()[1], pixels)
            rows = rows[overlap(box, rows) > 0.5]
            if len(rows):
                landmarks = np.average(rows[:, 4:14].reshape(-1, 5, 2), axis=0, weights=rows[:, 14])
                estimates.append((landmarks * (-1, 1) + (VIEW - 1, 0))[FLIPPED_ORDER] if flipped else landmarks)
        if not estimates:
            return face
        return face._replace(landmarks=(np.mean(estimates, axis=0) + 0.5) * scale - 0.5 + corner)


def best_score(faces):
    return max((face.score for face in faces), default=0)


def run(network, image):
    """Run a FaceDetectorYN on an RGB PIL image. Returns rows (N, 15) float64: box, five landmarks, score."""
    network.setInputSize(image.size)
    rows = network.detect(np.ascontiguousarray(np.asarray(image)[:, :, ::-1]))[1]
    return np.zeros((0, 15)) if rows is None else rows.astype(np.float64)


def overlap(box, rows):
    """Return the intersection over union (N,) of a box (4,) and of rows that begin with one (N, 4 or more)."""
    low = np.maximum(box[:2], rows[:, :2])
    high = np.minimum(box[:2] + box[2:4], rows[:, :2] + rows[:, 2:4])
    common = np.prod(np.clip(high - low, 0, None), axis=1)
    return common / np.maximum(box[2] * box[3] + rows[:, 2] * rows[:, 3] - common, 1e-9)
