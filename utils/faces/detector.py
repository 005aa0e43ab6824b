"""Faces in a photograph, with the five landmarks that alignment needs: OpenCV's YuNet.

YuNet: Wu et al. 2023, "YuNet: A Tiny Millisecond-level Face Detector", Machine Intelligence Research 20.
"""
import threading
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from utils.common.errors import UserError, first_line
from utils.common.files import download, locate
from utils.faces.images import open_image

INSTALL = 'pip install "opencv-python-headless>=5"'
MODEL_PATH = "model_data/face_detection_yunet_2026may.onnx"
# By commit: OpenCV's model zoo removes a model from its main branch when the next one comes.
MODEL_URL = ("https://media.githubusercontent.com/media/opencv/opencv_zoo/47534e27c9851bb1128ccc0102f1145e27f23f98/"
             "models/face_detection_yunet/face_detection_yunet_2026may.onnx")
MODEL_SHA256 = "ebafce4e3c118d6554634be5c27ab333b4c047a9a8c3faf1d7cf93101c22f0f0"

# YuNet finds faces of 20 to 800 pixels' height (measured on scaled faces of LFW). A photograph is therefore looked at
# twice: with 640 pixels on its longer side, where a face may fill it, and with 1280, where one of a large group still
# has 20; one of 12 megapixels takes 0.2 s then instead of 0.08 s.
LONGEST_SIDES = 640, 1280
SCORE = 0.6      # finds every subject of 2,320 LFW photographs; faces below 20 pixels' height score less
SAME_FACE = 0.3  # two boxes of a larger overlap (area in common by area in all) are one face

# YuNet's landmarks waver by a tenth of the distance between the eyes with the size of the face and from one box to the
# next. So they are taken again from a view of this size, which the face fills but for a margin, as the mean over all
# overlapping boxes and over the view's mirror image. Distance from a raw LFW picture's embedding to its hand-aligned
# crop's, median and 95th percentile of 387: 0.42 and 0.67 without, then by view and margin 0.31 and 0.52 (256, 1.25;
# 9.5 ms), 0.30 and 0.49 (256, 1.15; 9.2 ms), 0.29 and 0.48 (320, 1.25; 14.0 ms).
VIEW, MARGIN = 320, 1.25
MIRRORED = [1, 0, 2, 4, 3]  # the place of each landmark in the mirror

# YuNet also finds a face that lies on its side or upside down, as if it stood upright: with scrambled landmarks, and
# a score that is lower than the upright one's (0.75 and 0.83 where upright it is 0.93, medians of LFW). Where no face
# scores UPRIGHT_SCORE, as in 4% of upright LFW, the turns are looked at; one counts that scores TURN_GAIN more, and
# LEAST_TURNED. Of 2,320 photographs of LFW 99.8% are turned right from each other turn, and none that was upright
# is turned; nor is one of 900 that were blurred, dark, tiny or with sunglasses, but 1 of 142 masked faces is.
UPRIGHT_SCORE, TURN_GAIN, LEAST_TURNED = 0.91, 0.025, 0.75
TURNS = {90: Image.Transpose.ROTATE_270, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_90}  # clockwise

# Of 203 crops of faces in which the networks see little (face_crop.NEAR_BLANK) the least scores 0.61, as it is or twice
# as large; of 600 drawn pictures without a face 99% score less than this.
CROP_SIDES, CROP_SCORE = (112, 224), 0.5


class Face(NamedTuple):
    box: np.ndarray        # float64 (4,): left, top, width, height
    landmarks: np.ndarray  # float64 (5, 2), in pixels of the photograph, in the order of alignment.TEMPLATE
    score: float           # 0 to 1


class FaceDetector:
    """Finds faces; may be used by several threads at once.

    Raises UserError where OpenCV is not installed, or the model is neither there nor to be downloaded.
    """

    def __init__(self, model_path=MODEL_PATH):
        try:
            import cv2
            release, self.create = cv2.__version__, cv2.FaceDetectorYN.create
        except Exception as error:  # a library that is missing, a NumPy that it was not built for, a folder called cv2
            raise UserError(f"no face detection without OpenCV 5 ({first_line(error)}): {INSTALL}") from None
        if int(release.partition(".")[0]) < 5:
            raise UserError(f"no face detection with OpenCV {release}, it needs 5: {INSTALL}")
        model_path = locate(model_path)
        download(MODEL_URL, model_path, MODEL_SHA256)
        self.model_path, self.cv2 = str(model_path), cv2
        self.per_thread, self.lock = threading.local(), threading.Lock()  # a FaceDetectorYN has one caller at a time
        self.networks()

    def networks(self):
        """-> two FaceDetectorYN of this thread: one box per face, and every box."""
        if not hasattr(self.per_thread, "networks"):
            with self.lock:
                self.per_thread.networks = self.make_networks()
        return self.per_thread.networks

    def make_networks(self):
        logging = self.cv2.utils.logging
        level = logging.setLogLevel(logging.LOG_LEVEL_ERROR)  # each would print a warning about its own default
        try:
            return [self.create(self.model_path, "", (VIEW, VIEW), score, overlap)
                    for score, overlap in ((SCORE, SAME_FACE), (SCORE / 2, 1.0))]
        except self.cv2.error as error:
            raise UserError(f"OpenCV {self.cv2.__version__} does not read {self.model_path} ({error.err}): "
                            f"{INSTALL}") from None
        finally:
            logging.setLogLevel(level)

    def detect(self, source):
        """What open_image takes -> a list of Face, the largest box first; empty where there is none."""
        image, rows = open_image(source), np.zeros((0, 15))
        for longest in LONGEST_SIDES:
            scale = min(1, longest / max(image.size))
            size = [max(1, round(side * scale)) for side in image.size]
            found = run(self.networks()[0], image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2))
            found[:, :14] *= np.tile(np.divide(image.size, size), 7)
            rows = np.vstack([rows, found])
            if scale == 1:
                break
        faces = [Face(row[:4], row[4:14].reshape(5, 2), float(row[14])) for row in one_row_per_face(rows)]
        return sorted(faces, key=lambda face: -face.box[2] * face.box[3])

    def detect_upright(self, source):
        """What open_image takes -> (RGB PIL image, its faces as detect() gives them, degrees it was turned clockwise).

        Turned where it has no convincing face as it is, and one of another turn is more so.
        """
        image = open_image(source)
        faces, degrees = self.detect(image), 0
        if best_score(faces) >= UPRIGHT_SCORE:
            return image, faces, degrees
        least = max(best_score(faces) + TURN_GAIN, LEAST_TURNED)
        for angle, turn in TURNS.items():
            turned = self.detect(image.transpose(turn))
            if best_score(turned) >= least:
                faces, degrees, least = turned, angle, best_score(turned)
        return image.transpose(TURNS[degrees]) if degrees else image, faces, degrees

    def shows_face(self, crop):
        """Whether an RGB PIL image that is taken for an aligned crop shows a face at all."""
        views = (crop.resize((side, side), Image.Resampling.BICUBIC) for side in CROP_SIDES)
        return any((run(self.networks()[1], view)[:, 14] >= CROP_SCORE).any() for view in views)

    def refine(self, image, face):
        """An RGB PIL image and a Face in it -> the Face with more exact landmarks."""
        side = max(1, round(MARGIN * face.box[2:].max()))
        corner = (face.box[:2] + (face.box[2:] - side) / 2).round().astype(int)
        view = image.crop((*corner, *corner + side)).resize((VIEW, VIEW), Image.Resampling.BICUBIC)
        scale = side / VIEW
        box = np.concatenate([(face.box[:2] - corner) / scale, face.box[2:] / scale])
        estimates = []
        for picture in (view, ImageOps.mirror(view)):
            rows = run(self.networks()[1], picture)
            rows = rows[overlap(box, rows) > 0.5]
            if len(rows):
                landmarks = np.average(rows[:, 4:14].reshape(-1, 5, 2), axis=0, weights=rows[:, 14])
                if picture is not view:
                    landmarks = (landmarks * (-1, 1) + (VIEW - 1, 0))[MIRRORED]
                estimates.append(landmarks)
        if not estimates:
            return face
        return face._replace(landmarks=(np.mean(estimates, axis=0) + 0.5) * scale - 0.5 + corner)


def best_score(faces):
    """The highest score of a list of Face, 0 of none."""
    return max((face.score for face in faces), default=0)


def run(network, image):
    """A FaceDetectorYN and an RGB PIL image -> rows (N, 15) float64: box, five landmarks, score."""
    network.setInputSize(image.size)
    rows = network.detect(np.ascontiguousarray(np.asarray(image)[:, :, ::-1]))[1]
    return np.zeros((0, 15)) if rows is None else rows.astype(np.float64)


def overlap(box, rows):
    """A box (4,) and rows that begin with one (N, 4 or more) -> the area in common by the area in all, (N,)."""
    low = np.maximum(box[:2], rows[:, :2])
    high = np.minimum(box[:2] + box[2:4], rows[:, :2] + rows[:, 2:4])
    common = np.prod(np.clip(high - low, 0, None), axis=1)
    return common / np.maximum(box[2] * box[3] + rows[:, 2] * rows[:, 3] - common, 1e-9)


def one_row_per_face(rows):
    """Rows (N, 15) of several looks at one photograph -> the row of the highest score for each face."""
    kept = []
    for row in rows[np.argsort(-rows[:, 14], kind="stable")]:
        if not kept or overlap(row[:4], np.array(kept)).max() <= SAME_FACE:
            kept.append(row)
    return kept


def main_face(faces, image):
    """The face that a photograph is of, where it shows several: of the largest area - 2 (distance from the middle)^2.

    insightface's rule. On raw LFW (folds 1 to 3) it is the nearest to the middle in all 2,320 photographs, 471 of
    which show several faces; the largest is another one, and not the subject, in 11.
    """
    def prominence(face):
        middle = face.box[:2] + face.box[2:] / 2 - np.divide(image.size, 2)
        return face.box[2] * face.box[3] - 2 * middle @ middle
    return max(faces, key=prominence)
