"""Compare two pictures of faces.

    from arcface import Arcface
    arcface = Arcface()
    arcface.detect_image("img/1_001.jpg", "img/1_002.jpg")   # L2 distance, 0 (the same) to 2
    arcface.verify("img/1_001.jpg", "img/2_001.jpg").same    # False
    arcface.embed(["img/1_001.jpg", "img/2_001.jpg"])        # float32 (2, 128), of length 1
    arcface.identify("img/1_001.jpg", "people/")[0].name     # whose picture is nearest, of a folder per person

A picture is a path, a PIL image or a uint8 array (H, W, 3): a photograph, whose largest face is found and aligned with
OpenCV, or a face that is aligned to the 112x112 template already.
"""
import numbers
import os
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from utils.common.device import choose_device, describe_device
from utils.common.files import hash_file
from utils.drawing.contact_sheets import draw_candidates, draw_comparison, draw_faces
from utils.evaluation.embedding import InvalidEmbeddings, embed_images, inference_copy
from utils.evaluation.gallery import Gallery, nearest_people, open_gallery
from utils.evaluation.thresholds import choose_gallery_threshold, choose_threshold, judge
from utils.faces.face_crop import FaceCrop, blank_images, face_numbers, near_blank
from utils.faces.images import check_input_shape, preprocess
from utils.weights.checkpoint import find_weights, load_embedder


class Match(NamedTuple):
    distance: float    # L2 distance of the normalised embeddings, 0 to 2
    similarity: float  # their cosine, 1 to -1: 1 - distance^2 / 2
    threshold: float   # on the distance
    same: bool         # distance < threshold
    unsure: tuple | None = None  # (from, to): the distances at which the verdict is "not sure"; None: at none

    @property
    def verdict(self):
        """"same", "not sure" or "different"."""
        return judge(self.distance, self.threshold, self.unsure)


class Candidate(NamedTuple):
    """A person of a gallery, by their picture that is nearest to the one asked about."""
    name: str
    distance: float    # this and the next three as in Match
    similarity: float
    threshold: float
    same: bool
    picture: Path
    unsure: tuple | None = None  # as in Match
    verdict = Match.verdict


class Arcface:
    """The predictor: two pictures, or one against a gallery. Keywords override `_defaults`.

    `threshold` is then the one in force for two pictures and `threshold_meaning` says where it is from; a gallery has
    one of its own. `threshold_note` says in a line why the file of thresholds beside the weights is not used, None
    where there is nothing to say. Between the distances `unsure`, if not None, the verdict is "not sure".
    Raises TypeError for an unknown or ill-typed keyword, ValueError for an impossible `align` or `face`, and UserError
    for weights that do not load.
    """

    _defaults = {
        "model_path": "model_data/arcface_mobilefacenet.pth",  # or a run's folder, for its best.pth
        "backbone": None,               # the network of model_path; None: told from the file
        "input_shape": [112, 112, 3],   # height, width, channels
        "letterbox_image": True,        # pad to a square instead of stretching to one
        "device": "auto",               # or "cpu", "cuda", "cuda:N", "mps"; auto is the first of cuda, mps, cpu
        "cuda": True,                   # False: the CPU, whatever `device` says
        "bf16": False,                  # run in bfloat16: faster where the machine has instructions for it
        "align": "auto",                # True, False, or "auto": find the face in what is larger than an aligned crop
        "face": 1,                      # which face of a photograph: 1 is the largest; (1, 2): of each of two pictures
        "threshold": None,              # on the distance; None: the one of operating_point
        # best-accuracy, far-0.01 or far-0.001, as measured by eval_LFW.py --save-threshold, and nothing between "same"
        # and "different"; for a gallery the last two are the share of strangers who may be named. None: best accuracy,
        # "not sure" where it is not one person at FAR 0.001; for a gallery 0.01, "not sure" up to 0.1.
        "operating_point": None,
    }
    _types = {"model_path": (str, os.PathLike), "backbone": (str, type(None)), "input_shape": (list, tuple),
              "letterbox_image": bool, "device": str, "cuda": bool, "bf16": bool, "align": (bool, str),
              "face": (int, tuple, list), "threshold": (numbers.Real, type(None)), "operating_point": (str, type(None))}

    def __init__(self, **overrides):
        for name, value in overrides.items():
            if name not in self._defaults:
                raise TypeError(f"Arcface has no setting {name!r}: choose among {', '.join(self._defaults)}")
            if not isinstance(value, self._types[name]) or (name in ("threshold", "face") and isinstance(value, bool)):
                example = {"threshold": 1.2, "operating_point": "far-0.001", "backbone": "mobilefacenet"}.get(
                    name, self._defaults[name])
                raise TypeError(f"Arcface({name}={value!r}): expected something like {example!r}; "
                                f"the settings are {', '.join(self._defaults)}")
        self.__dict__.update(self._defaults | overrides)
        check_input_shape(self.input_shape)
        faces = face_numbers(self.face)
        crops = {face: FaceCrop(self.align, face) for face in (*faces, 1)}
        self.crops, self.gallery_crop = [crops[face] for face in faces], crops[1]
        self.device = choose_device(self.device if self.cuda else "cpu")
        self.model_path = find_weights(self.model_path)
        self.net = inference_copy(load_embedder(self.model_path, self.backbone)).to(self.device)
        self.backbone = self.net.backbone
        self.blanks = self.embed_anything(blank_images())
        self.given_threshold = self.threshold
        self.threshold, self.threshold_meaning, self.threshold_note, self.unsure = choose_threshold(
            self.model_path, self.operating_point, self.threshold)

    def show_config(self):
        """Print the settings in force."""
        for name in self._defaults:
            print(f"{name:>16}  {describe_device(self.device) if name == 'device' else getattr(self, name)}")

    def embed(self, images, batch_size=64, crop=None):
        """A list of N pictures -> L2-normalised embeddings, float32 (N, D).

        Raises UserError, which names it, for a picture that does not open or that shows no face.
        crop: another FaceCrop than that of the settings, whose first `face` counts for all.
        """
        if len(images) == 0:
            return np.zeros((0, self.net.embedding_size), np.float32)
        crop = crop or self.crops[0]
        embeddings = self.embed_anything(images, batch_size, crop)
        for place in near_blank(embeddings, self.blanks):
            crop.check_shows_face(images[place])
        return embeddings

    def embed_anything(self, images, batch_size=64, crop=None):
        """As embed(), whether the pictures show faces or not.

        crop: any function from a picture to a PIL image; None takes them as they are.
        """
        try:
            return embed_images(self.net, list(images), self.input_shape, self.letterbox_image, batch_size,
                                workers=min(4, len(images)), bf16=self.bf16, crop=crop).numpy()
        except InvalidEmbeddings as error:
            raise InvalidEmbeddings(f"{self.model_path}: {error}") from None

    def embed_two(self, image_1, image_2):
        """-> the embeddings of two pictures, each by its own of `face`."""
        if self.crops[0] is self.crops[1]:
            return self.embed([image_1, image_2])
        return np.concatenate([self.embed([image], crop=crop) for image, crop in zip((image_1, image_2), self.crops)])

    def detect_image(self, image_1, image_2):
        """-> the L2 distance of two pictures: 0 is the same picture, 2 the opposite of one."""
        first, second = self.embed_two(image_1, image_2).astype(np.float64)
        return float(np.linalg.norm(first - second))

    def verify(self, image_1, image_2):
        """-> Match: whether two pictures show one person."""
        distance = self.detect_image(image_1, image_2)
        return Match(distance, 1 - distance ** 2 / 2, self.threshold, distance < self.threshold, self.unsure)

    def embedding_settings(self):
        """-> a dict of all that an embedding depends on besides the picture, to know kept embeddings by."""
        return {"weights_sha256": hash_file(self.model_path), "input_shape": list(self.input_shape[:2]),
                "letterbox_image": self.letterbox_image, "bf16": self.bf16, "align": self.align}

    def open_gallery(self, folder, progress=None):
        """A folder of people's pictures -> Gallery (utils/evaluation/gallery.py).

        What is new or changed in it is embedded. Of a photograph the largest face counts, whatever `face` says.
        """
        return open_gallery(folder, partial(self.embed, crop=self.gallery_crop), self.embedding_settings(), progress)

    def gallery_threshold(self, gallery):
        """-> Threshold (utils/evaluation/thresholds.py) for one picture against this Gallery."""
        return choose_gallery_threshold(self.model_path, len(gallery.people), len(gallery.paths),
                                        gallery.own_tail, self.operating_point, self.given_threshold)

    def identify(self, image, gallery, top=5):
        """A picture and a gallery, opened or its folder -> the `top` nearest people, a list of Candidate.

        A person's distance is that of their nearest picture; the nearest person comes first. The threshold is that of
        the gallery.
        """
        if top < 1:
            raise ValueError(f"identify(top={top}): ask for one person at least")
        (embedding,) = self.embed([image])
        gallery = gallery if isinstance(gallery, Gallery) else self.open_gallery(gallery)
        threshold, _, _, unsure = self.gallery_threshold(gallery)
        return [Candidate(name, distance, 1 - distance ** 2 / 2, threshold, distance < threshold, gallery.folder / path,
                          unsure) for name, distance, path in nearest_people(embedding, gallery, top)]

    def draw(self, image_1, image_2, match):
        """-> a PIL picture: the two side by side, as the network sees them, and what verify() said of them.

        A photograph stands above its crop, with its faces marked.
        """
        looks = [crop.find(image) for image, crop in zip((image_1, image_2), self.crops)]
        return draw_comparison([self.as_seen(look.crop) for look in looks], match, self.threshold_meaning,
                               [draw_faces(look) if look.face else None for look in looks])

    def draw_candidates(self, image, candidates, meaning=""):
        """-> a PIL picture: a picture, as the network sees it, and beside it what identify() answered.

        meaning: that of the gallery's threshold.
        """
        query = self.as_seen(self.crops[0](image))
        found = [self.as_seen(self.gallery_crop(candidate.picture)) for candidate in candidates]
        return draw_candidates(query, list(zip(found, candidates)), meaning)

    def as_seen(self, crop):
        return preprocess(crop, self.input_shape, self.letterbox_image)

    def get_FPS(self, image, test_interval, batch_size=1):
        """-> seconds per picture, the median over `test_interval` forward passes after a warm-up."""
        images = [image] * batch_size
        seconds = []
        for _ in range(test_interval + 3):
            start = time.perf_counter()
            self.embed_anything(images, batch_size, self.crops[0])  # ends with a copy to the CPU, so CUDA has finished
            seconds.append(time.perf_counter() - start)
        return median(seconds[3:]) / batch_size
