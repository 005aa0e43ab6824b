"""Compare faces in images.

    from arcface import Arcface
    arcface = Arcface()
    arcface.detect_image("img/1_001.jpg", "img/1_002.jpg")   # L2 distance, 0 (the same) to 2
    arcface.verify("img/1_001.jpg", "img/2_001.jpg").same    # False
    arcface.embed(["img/1_001.jpg", "img/2_001.jpg"])        # float32 (2, 128), of length 1
    arcface.identify("img/1_001.jpg", "people/")[0].name     # the nearest person of a gallery

An image is a path, a PIL image or a uint8 array (H, W, 3) in RGB order (from OpenCV give `image[:, :, ::-1]`). In a
photo the main face is detected and aligned. A crop that is aligned to the 112x112 template is used as it is. An image
may also be what find() or find_all() returned, so that the face is not detected again.
"""
import os
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from utils.common.device import choose_device
from utils.common.errors import UserError
from utils.drawing.contact_sheets import draw_candidates, draw_comparison, draw_faces
from utils.evaluation.embedding import embed_images, inference_copy
from utils.evaluation.gallery import Gallery, nearest_identities, open_gallery
from utils.evaluation.thresholds import Thresholds
from utils.faces.face_crop import CroppedFace, FaceCrop, NoDetector, blank_images, near_blank
from utils.faces.images import check_input_shape, preprocess
from utils.weights.checkpoint import find_weights, load_embedder

if hasattr(os, "register_at_fork"):
    # OpenMP's threads do not survive a fork: a child would wait for them for ever (gunicorn --preload, celery, Pool).
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


class Match(NamedTuple):
    distance: float      # L2 distance of the normalised embeddings, 0 to 2
    similarity: float    # their cosine, 1 to -1: 1 - distance^2 / 2
    threshold: float     # on the distance
    same: bool           # distance < threshold
    verdict: str         # "same", "not sure" or "different"
    remarks: tuple = ()  # what the face detector noticed, such as "a.jpg: 3 faces, number 1 counts"


class Candidate(NamedTuple):
    """A person of a gallery, by the image that is nearest to the face in question."""
    name: str
    distance: float      # this and the next four as in Match
    similarity: float
    threshold: float
    same: bool
    verdict: str
    path: Path           # of the nearest image
    remarks: tuple = ()  # on the face in question and on this image


class Arcface:
    """Compare two images, or one with a gallery. Keywords override `_defaults`.

    Afterwards `threshold` is the threshold for two images, and `pair_threshold` also gives its origin. A gallery has
    its own. Threads may share an Arcface. It can be pickled, and used after a fork unless its model is an .onnx file.

    Raises TypeError for an unknown keyword, ValueError for an invalid `align` or `face` or a threshold outside 0 to 2,
    and UserError if the weights do not load, or for another invalid setting.
    """

    _defaults = {
        "model_path": "model_data/arcface_mobilefacenet.pth",  # or a run's folder, for its best.pth, or an .onnx file
        "backbone": None,               # the network of model_path; None: inferred from the file
        "input_shape": [112, 112, 3],   # height, width, channels
        "letterbox_image": True,        # pad to a square instead of stretching to one
        "device": "auto",               # or "cpu", "cuda", "cuda:N", "mps"; auto is the first of cuda, mps, cpu
        "cuda": True,                   # False: the CPU, whatever `device` is
        "bf16": False,                  # run in bfloat16: faster if the machine has instructions for it
        "align": "auto",                # True, False, or "auto": find the face in images larger than an aligned crop
        "face": 1,                      # which face of a photo: 1 is the main one; (1, 2): of each of two photos
        "threshold": None,              # on the distance, 0 to 2; None: the one of operating_point
        # best-accuracy, far-0.01 or far-0.001 (for a gallery the fraction of unknown people that may be identified);
        # None: best-accuracy, for a gallery far-0.01, and "not sure" between the clear cases.
        "operating_point": None,
    }

    def __init__(self, **overrides):
        for name in overrides:
            if name not in self._defaults:
                raise TypeError(f"Arcface has no setting {name!r}: choose from {', '.join(self._defaults)}")
        self.overrides = overrides
        self.__dict__.update(self._defaults | overrides)
        check_input_shape(self.input_shape)
        first, second = self.face if isinstance(self.face, (tuple, list)) else (self.face, self.face)
        self.crops = FaceCrop(self.align, first), FaceCrop(self.align, second)
        self.gallery_crop = FaceCrop(self.align)
        self.device = choose_device(self.device if self.cuda else "cpu")
        self.model_path = find_weights(self.model_path)
        self.net = inference_copy(load_embedder(self.model_path, self.backbone)).to(self.device)
        self.backbone = self.net.backbone
        self.thresholds = Thresholds(self.model_path, self.operating_point, self.threshold)
        self.pair_threshold = self.thresholds.for_pair()
        self.threshold = self.pair_threshold.value
        self.blanks = self.embed_anything(blank_images())

    def __reduce__(self):  # pickled as its settings
        return partial(type(self), **self.overrides), ()

    def find(self, image, index=0):
        """Return the CroppedFace of an image. index: 1 for the second of two images, see `face`."""
        return self.crops[index].find(image)

    def find_all(self, image):
        """Return a CroppedFace for each face of a photo, from left to right."""
        return self.crops[0].find_all(image)

    def embed(self, images, batch_size=64, on_error="raise", progress=None):
        """Return the L2-normalised embeddings of an iterable of N images, float32 (N, D).

        on_error: "raise" a UserError that names an image that does not open or shows no face. "skip": return
        (embeddings, errors) instead. Such an image has a row of NaN, and errors is {its index: the reason}.
        progress: such as tqdm, called as progress(iterable of batches, total=count).
        """
        is_one_array = isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim < 4
        if is_one_array or isinstance(images, (str, bytes, os.PathLike, Image.Image, CroppedFace)):
            raise TypeError("embed() takes a list of images: for one image give [image]")
        embeddings, _, errors = self.embed_found(images, self.find, batch_size, on_error, progress)
        return (embeddings, errors) if on_error == "skip" else embeddings

    def embed_found(self, images, find, batch_size=64, on_error="raise", progress=None):
        """Return (embeddings, faces, errors): embed() with the CroppedFace of each image, None if it is not found.

        find: a function from an image to a CroppedFace. The pixels of the faces are not kept.
        """
        images, errors = list(images), {}
        found = [None] * len(images)

        def attempt(function, index):
            """Return function(image), or None for an image that is skipped."""
            try:
                return function(images[index])
            except UserError as error:
                if on_error != "skip" or isinstance(error, NoDetector):  # without a detector no image is at fault
                    raise
                errors[index] = str(error)

        def crop(index):
            if face := attempt(find, index):
                found[index] = face._replace(image=None, crop=None)
                return face.crop
            return blank_images()[0]  # embedded in place of an image that is skipped

        embeddings = self.embed_anything(range(len(images)), batch_size, crop, progress)
        for index in near_blank(embeddings, self.blanks):
            if found[index]:
                attempt(lambda image: self.gallery_crop.check_shows_face(find(image)), index)
        embeddings[list(errors)] = np.nan
        return embeddings, found, dict(sorted(errors.items()))

    def embed_anything(self, images, batch_size=64, crop=None, progress=None):
        """Return the embeddings of images, whether they show faces or not. crop: as for embed_images."""
        if len(images) == 0:
            return np.zeros((0, self.net.embedding_size), np.float32)
        return embed_images(self.net, images, self.input_shape, self.letterbox_image, batch_size,
                            bf16=self.bf16, crop=crop, progress=progress).numpy()

    def detect_image(self, image_1, image_2):
        """Return the L2 distance of two images: 0 for equal embeddings, 2 for opposite ones."""
        first, second = self.embed([self.find(image_1), self.find(image_2, 1)]).astype(np.float64)
        return float(np.linalg.norm(first - second))

    def verify(self, image_1, image_2):
        """Return the Match of two images. It is "not sure" between two thresholds, or if a face is small or unclear."""
        pair = self.find(image_1), self.find(image_2, 1)
        return judge(self.detect_image(*pair), self.pair_threshold, pair)

    def open_gallery(self, folder, progress=None):
        """Return the Gallery of a folder (utils/evaluation/gallery.py).

        The main face of a photo counts, whatever `face` is. A photo with another face of like size is left out.
        """
        settings = {"weights_sha256": self.thresholds.weights_sha256, "input_shape": list(self.input_shape[:2]),
                    "letterbox_image": self.letterbox_image, "bf16": self.bf16, "align": self.align}
        return open_gallery(folder, partial(self.embed_gallery, progress=progress), settings)

    def embed_gallery(self, paths, progress):
        """Return what open_gallery() asks for: embeddings, remarks, and whether each face is uncertain."""
        def find(path):
            face = self.gallery_crop.find(path)
            if face.ambiguous:
                raise UserError(f"{path} shows {len(face.faces)} faces, two of like size: crop it to one person")
            return face
        embeddings, found, errors = self.embed_found(paths, find, on_error="skip", progress=progress)
        remarks = [errors[index] if index in errors else ", ".join(face.remarks) for index, face in enumerate(found)]
        return embeddings, remarks, [bool(face and face.doubts) for face in found]

    def gallery_threshold(self, gallery):
        """Return the Threshold for one face against this Gallery."""
        return self.thresholds.for_gallery(len(gallery.paths), gallery.tail)

    def identify(self, image, gallery, top=5):
        """Return the `top` nearest people of a gallery (opened, or its folder), a list of Candidate, nearest first."""
        return self.candidates([self.find(image)], gallery, top)[0]

    def identify_all(self, image, gallery):
        """Return the nearest Candidate for each face of a photo (or of find_all(photo)), from left to right."""
        faces = image if isinstance(image, list) else self.find_all(image)
        return [nearest for nearest, in self.candidates(faces, gallery, 1)]

    def candidates(self, faces, gallery, top):
        """Return the list of identify() for each CroppedFace."""
        embeddings = self.embed(faces)
        gallery = gallery if isinstance(gallery, Gallery) else self.open_gallery(gallery)
        threshold = self.gallery_threshold(gallery)

        def candidate(face, name, distance, row):
            match = judge(distance, threshold, [face], gallery.uncertain[row], gallery.remarks[row])
            return Candidate(name, *match[:-1], gallery.folder / gallery.paths[row], match.remarks)

        return [[candidate(face, *nearest) for nearest in nearest_identities(embedding, gallery, top)]
                for face, embedding in zip(faces, embeddings)]

    def draw(self, image_1, image_2, match):
        """Return a PIL image: both faces as the network sees them, their photos and the result of verify()."""
        pair = self.find(image_1), self.find(image_2, 1)
        return draw_comparison([self.as_seen(face.crop) for face in pair], match, self.pair_threshold.meaning,
                               [draw_faces(face) if face.face else None for face in pair])

    def draw_candidates(self, image, candidates, meaning=""):
        """Return a PIL image of a face and the result of identify(). meaning: that of the gallery's threshold."""
        found = [self.as_seen(self.gallery_crop.find(candidate.path).crop) for candidate in candidates]
        query = self.as_seen(self.find(image).crop)
        return draw_candidates(query, list(zip(found, candidates)), meaning)

    def as_seen(self, crop):
        return preprocess(crop, self.input_shape, self.letterbox_image)

    def get_FPS(self, image, test_interval, batch_size=1):
        """Return seconds per image, with decoding: the median over `test_interval` batches after a warm-up."""
        seconds = []
        for _ in range(test_interval + 3):
            start = time.perf_counter()
            self.embed_anything([image] * batch_size, batch_size, lambda image: self.gallery_crop.find(image).crop)
            seconds.append(time.perf_counter() - start)
        return median(seconds[3:]) / batch_size


def judge(distance, threshold, faces, uncertain=False, remarks=()):
    """Return the Match of these CroppedFaces at a distance. uncertain, remarks: those of a gallery's image."""
    verdict = "not sure" if uncertain or any(face.doubts for face in faces) else threshold.verdict(distance)
    remarks = *(f"{face.name}: {remark}" for face in faces for remark in face.remarks), *remarks
    return Match(distance, 1 - distance ** 2 / 2, threshold.value, distance < threshold.value, verdict, remarks)
