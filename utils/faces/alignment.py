"""Five landmarks of a face to the aligned 112x112 crop that the networks are trained on."""
import math

import numpy as np
from PIL import Image

from utils.faces.images import GRAY

# Where ArcFace wants the landmarks in a 112x112 crop (Deng et al. 2019, arXiv 1801.07698): the eyes, the tip of the
# nose and the corners of the mouth, left in the image first. Whole numbers are centers of pixels.
TEMPLATE = np.array([(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655),
                     (70.7299, 92.2041)])
TEMPLATE_SIZE = 112


def similarity(source, target):
    """Return the (2, 3) matrix of the rotation, scale and shift that maps points (N, 2) closest to points (N, 2).

    The least-squares solution, never a reflection (Umeyama 1991, IEEE PAMI 13(4), eq. 40-42). In complex numbers such a
    map is z -> a z + b, so it is a linear regression.
    """
    source, target = (np.asarray(points, np.float64) @ (1, 1j) for points in (source, target))
    centered = source - source.mean()
    a = np.vdot(centered, target - target.mean()) / np.vdot(centered, centered).real
    b = target.mean() - a * source.mean()
    return np.array([(a.real, -a.imag, b.real), (a.imag, a.real, b.imag)])


def align(image, landmarks):
    """Return the aligned crop (112, 112) of an RGB PIL image. It is gray outside the image.

    landmarks: (5, 2) in pixels of the image, in the order of TEMPLATE.
    """
    to_image = np.linalg.inv(np.vstack([similarity(landmarks, TEMPLATE), (0, 0, 1)]))[:2]
    # Pillow's transform() reads only the pixels next to each point, so a large face would be aliased. Therefore it
    # draws at a multiple of the size, and blocks are averaged. Bilinear is as close to the hand-aligned crops as
    # bicubic, in less than half the time.
    multiple = max(1, math.ceil(math.sqrt(abs(np.linalg.det(to_image[:, :2]))) - 0.01))
    # Pillow counts from the corners of pixels, half a pixel before their centers.
    linear, shift = to_image[:, :2] / multiple, to_image[:, 2] - to_image[:, :2].sum(1) / 2 + 0.5
    image = image.transform((TEMPLATE_SIZE * multiple,) * 2, Image.Transform.AFFINE,
                            np.c_[linear, shift].ravel().tolist(), Image.Resampling.BILINEAR, fillcolor=GRAY)
    return image.reduce(multiple)
