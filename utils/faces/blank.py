"""Pictures of nothing, and how a network betrays that it sees nothing in another picture.

A network has much the same embedding for all that is no face, so that a black picture and noise are "one person".
"""
import numpy as np

# L2 distance to the nearest of the embeddings of blank_pictures(), by model_data/arcface_mobilefacenet.pth and by the
# published weights: of all 7,701 pictures of LFW 1.13 and 1.14 or more (a helmet with goggles: 0.76). Below NEAR
# are all of 1,500 pictures of one colour, gradients, noise, checkerboards, stripes, text, shapes and landscapes, 99% of
# blurred noise, 90% and 97% of 1/f noise, 99% of pieces of backgrounds. Of 5,900 harder faces 2% are, and of those with
# masks a quarter. So what is near asks for a closer look: plain_or_noise(), then FaceDetector.shows_face().
NEAR = 1.05

# A face deviates by 19 grey levels and more, and its neighbouring pixels correlate by 0.79 and more (the 13,600 faces
# above); noise by 0.02 at most, lines of text by 0.4.
LEAST_DEVIATION, LEAST_CORRELATION = 4, 0.6


def blank_pictures():
    """-> a black, a white and a grey picture, uint8 (112, 112, 3) each."""
    return [np.full((112, 112, 3), level, np.uint8) for level in (0, 255, 128)]


def near_blank(embeddings, blanks):
    """L2-normalised embeddings (N, D) and those of blank_pictures() (3, D) -> the numbers of the near ones, a list."""
    return np.flatnonzero((embeddings @ blanks.T).max(1, initial=-1) > 1 - NEAR ** 2 / 2).tolist()


def plain_or_noise(image):
    """Whether an RGB PIL image, seen as 112x112 pixels, is of one grey level or has no two neighbours that belong."""
    grey = np.asarray(image.convert("L").resize((112, 112)), np.float64)
    grey -= grey.mean()
    products = (grey[1:] * grey[:-1]).mean() + (grey[:, 1:] * grey[:, :-1]).mean()
    return grey.std() < LEAST_DEVIATION or products / 2 < LEAST_CORRELATION * grey.var()
