"""Five landmarks of a face, and the aligned crop that the networks were trained on."""
import math

import numpy as np
from PIL import Image

from utils.faces.images import GRAY

# Where ArcFace wants the landmarks in a 112x112 picture (Deng et al. 2019, arXiv 1801.07698): eye, eye, nose tip,
# corner of the mouth, corner of the mouth, the left one in the picture first. Whole numbers are centres of pixels.
TEMPLATE = np.array([(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655),
                     (70.7299, 92.2041)])
TEMPLATE_SIZE = 112


def similarity(source, target):
    """Points (N, 2), points (N, 2) -> the (2, 3) matrix of rotation, scale and shift that takes the first nearest.

    The least-squares solution of Umeyama (1991, IEEE PAMI 13(4), eq. 40-42), never a reflection. In the plane such
    a map is z -> a z + b in complex numbers, so that his singular values come down to a linear regression.
    Raises ValueError where the points determine none: not finite, all in one place, or best shrunk to one.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 2:
        raise ValueError(f"landmarks must be two equal arrays (N, 2), not {source.shape} and {target.shape}")
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise ValueError("landmarks that are not finite cannot be aligned")
    source, target = source @ (1, 1j), target @ (1, 1j)
    centred = source - source.mean()
    spread = np.vdot(centred, centred).real
    size = np.abs(source).max() + 1
    if spread <= len(source) * (1e-9 * size) ** 2:
        raise ValueError("landmarks that are all in one place cannot be aligned")
    a = np.vdot(centred, target - target.mean()) / spread
    if abs(a) ** 2 * spread <= 1e-12 * np.square(np.abs(target - target.mean())).sum():
        raise ValueError("landmarks that resemble no face cannot be aligned")
    b = target.mean() - a * source.mean()
    return np.array([(a.real, -a.imag, b.real), (a.imag, a.real, b.imag)])


def warp(image, matrix, size):
    """An RGB PIL image -> the PIL image (size, size) whose pixel (x, y) is the image's at matrix @ (x, y, 1).

    Grey, as the letterbox, where that lies outside. Pillow's transform() reads the same few pixels around each point
    however far apart the points are, so that a large face shrunk by it would be aliased; here it draws at a whole
    multiple of the size, fine enough to miss no pixel, whose blocks are then averaged. Bilinear: no further from
    the hand-aligned crops than bicubic, in less than half the time.
    """
    fine = max(1, math.ceil(math.sqrt(abs(np.linalg.det(matrix[:, :2]))) - 0.01))
    # Pillow counts from the corners of pixels, half a pixel before their centres.
    linear, shift = matrix[:, :2] / fine, matrix[:, 2] - matrix[:, :2].sum(1) / 2 + 0.5
    image = image.transform((size * fine, size * fine), Image.Transform.AFFINE, np.c_[linear, shift].ravel().tolist(),
                            Image.Resampling.BILINEAR, fillcolor=GRAY)
    return image.reduce(fine)


def align(image, landmarks, size=TEMPLATE_SIZE):
    """An RGB PIL image and landmarks (5, 2) in its pixels, in the template's order -> the aligned crop (size, size).

    Raises ValueError for landmarks that determine no crop.
    """
    target = (TEMPLATE + 0.5) * (size / TEMPLATE_SIZE) - 0.5
    to_crop = np.vstack([similarity(landmarks, target), (0, 0, 1)])
    return warp(image, np.linalg.inv(to_crop)[:2], size)


def eye_distance(landmarks):
    """Pixels between the eyes; 35 in the template."""
    return float(np.linalg.norm(landmarks[1] - landmarks[0]))
