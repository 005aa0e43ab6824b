"""utils/faces/alignment.py: the similarity that fits landmarks to the template, and the aligned crop."""
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from utils.faces.alignment import TEMPLATE, align, similarity

coordinate = st.floats(-500, 500, width=32)
points = st.lists(st.tuples(coordinate, coordinate), min_size=5, max_size=5).map(np.array)


def transformed(points, angle, scale, shift):
    rotation = np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    return scale * points @ rotation.T + shift


def apply(matrix, points):
    return points @ matrix[:, :2].T + matrix[:, 2]


@given(st.floats(-np.pi, np.pi), st.floats(0.05, 40), st.tuples(coordinate, coordinate))
def test_a_known_rotation_scale_and_shift_is_found(angle, scale, shift):
    landmarks = transformed(TEMPLATE, angle, scale, shift)
    matrix = similarity(landmarks, TEMPLATE)
    assert np.abs(apply(matrix, landmarks) - TEMPLATE).max() < 1e-6
    assert np.linalg.det(matrix[:, :2]) == pytest.approx(scale ** -2)


@settings(max_examples=50)
@given(points, points)
def test_it_is_the_least_squares_solution_and_never_a_reflection(source, target):
    # The four numbers of a similarity, x' = p x - q y + s and y' = q x + p y + t, by lstsq.
    x, y = source.T
    one, zero = np.ones(len(x)), np.zeros(len(x))
    equations = np.vstack([np.c_[x, -y, one, zero], np.c_[y, x, zero, one]])
    p, q, s, t = np.linalg.lstsq(equations, target.T.ravel(), rcond=None)[0]
    assume(np.linalg.norm(source - source.mean(0)) > 1 and np.hypot(p, q) > 1e-3)
    matrix = similarity(source, target)
    assert np.abs(apply(matrix, source) - apply(np.array([(p, -q, s), (q, p, t)]), source)).max() < 1e-4
    assert np.linalg.det(matrix[:, :2]) > 0


@pytest.mark.parametrize("scale, angle", [(1, 0), (0.4, 0.5), (3.3, -0.4), (8.2, 2.5)])
def test_the_crop_has_the_landmarks_where_the_template_has_them(scale, angle):
    side, blur = int(170 * scale) + 60, max(1.5, 2 * scale)
    landmarks = transformed(TEMPLATE - 56, angle, scale, (side / 2, side / 2))
    for (x, y), expected in zip(landmarks, TEMPLATE):
        column, row = (np.exp(-((np.arange(side) - center) / blur) ** 2 / 2) for center in (x, y))
        spot = np.repeat((128 + 127 * np.outer(row, column))[..., None], 3, axis=2).round().astype(np.uint8)
        light = np.asarray(align(Image.fromarray(spot), landmarks), np.float64)[..., 0] - 128
        rows, columns = np.indices(light.shape)
        found = np.array([(light * columns).sum(), (light * rows).sum()]) / light.sum()
        assert np.abs(found - expected).max() < 0.1


@pytest.mark.parametrize("scale, angle", [(12, 0), (7.3, 0), (12, 0.3)])
def test_a_large_face_is_not_aliased(scale, angle):
    stripes = np.zeros((1600, 1600, 3), np.uint8)  # finer than the crop's pixels, which average them
    stripes[:, ::2] = 255
    landmarks = transformed(TEMPLATE - 56, angle, scale, (800, 800))
    middle = np.asarray(align(Image.fromarray(stripes), landmarks), int)[30:80, 30:80]
    assert abs(middle.mean() - 127.5) < 2 and middle.std() < 12
