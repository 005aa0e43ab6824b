"""Identification in a gallery: the nearest identity, and which images are embedded again."""
import os
import pickle
import shutil
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from conftest import Calls
from PIL import Image

from arcface import Arcface
from utils.common.errors import UserError
from utils.evaluation import gallery as gallery_module
from utils.evaluation.gallery import CACHE_NAME, Gallery, fit_gallery_tail, nearest_identities, open_gallery

PEOPLE = {"王小明": "Adrien_Brody", "Andre; Agassi": "Andre_Agassi", "Abel Pacheco": "Abel_Pacheco"}
SETTINGS = {"weights_sha256": "one", "letterbox_image": True}


@pytest.fixture(scope="module")
def faces(shared):
    """faces(person) returns the images of one of PEOPLE."""
    return lambda person: sorted((shared / "lfw" / "images" / PEOPLE[person]).iterdir())


@pytest.fixture
def people(tmp_path, faces):
    """A gallery of the first two images of each of PEOPLE."""
    for person in PEOPLE:
        (tmp_path / "people" / person).mkdir(parents=True)
        for path in faces(person)[:2]:
            shutil.copyfile(path, tmp_path / "people" / person / path.name)
    return tmp_path / "people"


class ColorEmbedder:
    """Embeds an image as its mean color, and records the names of the images."""

    def __init__(self):
        self.seen = []

    def __call__(self, paths, progress=None):
        embeddings, remarks = np.full((len(paths), 3), np.nan, np.float32), [""] * len(paths)
        for index, path in enumerate(paths):
            self.seen.append(path.name)
            try:
                embeddings[index] = np.asarray(Image.open(path)).mean((0, 1)) / 255
            except OSError:
                remarks[index] = f"{path} does not decode"
        return embeddings, remarks, [path.name.startswith("tiny") for path in paths]


@pytest.fixture
def colors(tmp_path):
    """A gallery of plain images: two people in folders and one loose image."""
    for name, color in {"red/1.png": (255, 0, 0), "red/2.png": (200, 0, 0), "green/1.png": (0, 255, 0),
                        "blue.png": (0, 0, 255)}.items():
        draw(tmp_path / "colors" / name, color)
    return tmp_path / "colors"


def draw(path, color, size=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), color).save(path)


def open_colors(folder, settings=SETTINGS):
    """Return (Gallery, sorted names of the images that were embedded for it)."""
    embed = ColorEmbedder()
    gallery = open_gallery(folder, embed, settings)
    return gallery, sorted(embed.seen)


# identification

def test_a_face_finds_its_person_at_the_distance_of_the_nearest_image(arcface, people, faces):
    for person in PEOPLE:
        query = faces(person)[-1]
        found = arcface.identify(query, people)
        assert found[0].name == person and [candidate.same for candidate in found] == [True, False, False]
        assert [candidate.verdict for candidate in found] == ["same", "different", "different"]
        for candidate in found:
            distances = {path: arcface.detect_image(query, path) for path in (people / candidate.name).iterdir()}
            assert candidate.distance == pytest.approx(min(distances.values()), abs=1e-6)
            assert distances[candidate.path] == min(distances.values())
            assert candidate.similarity == pytest.approx(1 - candidate.distance ** 2 / 2)
            assert candidate.threshold < arcface.threshold and candidate.remarks == ()


def test_the_nearest_identities_are_those_of_a_loop_over_all_images():
    rng = np.random.default_rng(0)
    gallery, query = made_gallery(rng), rng.normal(size=8).astype(np.float32)
    query /= np.linalg.norm(query)
    distances = np.linalg.norm(gallery.embeddings.astype(np.float64) - query, axis=1)
    best = {}
    for row in np.argsort(distances):
        best.setdefault(gallery.identity[row], row)
    expected = [(gallery.names[number], pytest.approx(distances[row]), row) for number, row in best.items()]
    for top in (1, 7, 40, 99):
        assert nearest_identities(query, gallery, top) == expected[:top]


# the folder

def test_folders_and_loose_images_are_people_and_the_rest_is_reported(colors):
    draw(colors / "red.jpg", (250, 0, 0))  # another image of red
    draw(colors / "green" / "deep" / "1.png", (0, 9, 0))
    draw(colors / ".hidden.png", (9, 9, 9))
    (colors / "red" / "link.png").symlink_to("link.png")  # leads to itself
    for name in ("green/notes.txt", "red/phone.HEIC"):
        (colors / name).write_text("no image")
    gallery, _ = open_colors(colors)
    names = [gallery.names[number] for number in gallery.identity]
    assert dict(zip(gallery.paths, names)) == {"blue.png": "blue", "red.jpg": "red", "green/1.png": "green",
                                               "red/1.png": "red", "red/2.png": "red"}
    assert len(gallery.skipped) == 3 and "link.png cannot be read" in gallery.skipped[0]
    assert "1 .heic" in gallery.skipped[1] and "deep" in gallery.skipped[2]


@pytest.mark.parametrize("folder", [".", "red"])
def test_a_folder_that_cannot_be_read_for_a_moment_keeps_its_embeddings(colors, monkeypatch, folder):
    def fail(path, scandir=os.scandir):
        if Path(path) == colors / folder:
            raise OSError(24, "Too many open files")
        return scandir(path)
    open_colors(colors)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="Too many open files"):
        patch.setattr("os.scandir", fail)
        open_colors(colors)
    assert open_colors(colors)[0].embedded == 0


def test_one_name_in_two_unicode_forms_is_one_person(tmp_path):
    forms = [unicodedata.normalize(form, "José") for form in ("NFC", "NFD")]
    for number, form in enumerate(forms):
        draw(tmp_path / form / "1.png", (number, 0, 0))
    draw(tmp_path / f"{forms[1]}.png", (9, 0, 0))
    gallery, _ = open_colors(tmp_path)
    assert gallery.names == [forms[0]] and len(gallery.paths) == 3


@pytest.mark.parametrize("content", [[], ["notes.txt"], ["bad.png", "ann/bad.png"]])
def test_a_gallery_without_a_usable_image_is_a_user_error(tmp_path, content):
    (tmp_path / "people").mkdir()
    for name in content:
        (tmp_path / "people" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "people" / name).write_text("no image")
    with pytest.raises(UserError, match="people holds no image") as caught:
        open_colors(tmp_path / "people")
    assert "\n" not in str(caught.value) and ("bad.png" in str(caught.value)) == ("bad.png" in content)
    with pytest.raises(UserError, match="gone is not a folder"):
        open_colors(tmp_path / "gone")


# what is embedded again

def test_only_new_and_changed_images_are_embedded_again_and_removed_ones_disappear(colors):
    assert open_colors(colors)[1] == ["1.png", "1.png", "2.png", "blue.png"]
    assert open_colors(colors)[1] == []
    draw(colors / "new.png", (9, 9, 9))
    gallery, seen = open_colors(colors)
    assert seen == ["new.png"] and "new" in gallery.names and gallery.embedded == 1

    (colors / "red").rename(colors.with_name("elsewhere"))
    gallery, seen = open_colors(colors)
    assert seen == [] and "red" not in gallery.names and len(gallery.embeddings) == 3
    colors.with_name("elsewhere").rename(colors / "red")  # the cache has dropped the removed images
    gallery, seen = open_colors(colors)
    assert seen == ["1.png", "2.png"]
    assert np.array_equal(gallery.embeddings, ColorEmbedder()([colors / path for path in gallery.paths])[0])
    assert [path.name for path in colors.glob(".*")] == [CACHE_NAME]


def test_an_image_that_failed_is_reported_again_and_tried_again_only_after_a_change(colors):
    for name in ("bad.png", "red/bad; 图.png"):
        (colors / name).write_text("no image")
    _, seen = open_colors(colors)
    assert seen.count("bad.png") == 1
    colors = colors.rename(colors.with_name("moved"))
    gallery, seen = open_colors(colors)
    assert seen == [] and len(gallery.paths) == 4
    assert gallery.skipped == [f"{colors / name} does not decode" for name in ("bad.png", "red/bad; 图.png")]
    draw(colors / "bad.png", (7, 7, 7))
    gallery, seen = open_colors(colors)
    assert seen == ["bad.png"] and "bad" in gallery.names and len(gallery.skipped) == 1


def test_an_emptied_gallery_keeps_no_embeddings(colors):
    open_colors(colors)
    for path in colors.rglob("*.png"):
        path.unlink()
    with pytest.raises(UserError, match="holds no image"):
        open_colors(colors)
    assert not (colors / CACHE_NAME).exists()


def test_other_weights_or_preprocessing_embed_everything_again(colors, arcface, published_weights, people):
    open_colors(colors)
    for settings in (SETTINGS | {"weights_sha256": "two"}, SETTINGS):
        assert len(open_colors(colors, settings)[1]) == 4
    assert open_colors(colors)[1] == []
    two = people / "Abel Pacheco"
    for settings in ({}, {"letterbox_image": False}, {"input_shape": [100, 112]}, {"bf16": True}, {"align": False}):
        assert Arcface(model_path=published_weights, cuda=False, **settings).open_gallery(two).embedded == 2
    moved = shutil.copyfile(published_weights, people.with_name("moved.pth"))
    assert Arcface(model_path=moved, cuda=False, align=False, threshold=0.1).open_gallery(two).embedded == 0


# the cache

@pytest.mark.parametrize("damage", [
    lambda cache, evil: cache.write_bytes(cache.read_bytes()[:-300]),
    lambda cache, evil: cache.write_bytes(cache.read_bytes().replace(b"blue.png", b"blau.png")),
    lambda cache, evil: cache.write_bytes(pickle.dumps(evil)),
    lambda cache, evil: np.savez(cache, **(dict(np.load(cache)) | {"embeddings": np.array([evil] * 4, object)}))],
    ids=["truncated", "flipped bytes", "pickle", "pickled embeddings"])
def test_a_damaged_or_hostile_cache_is_written_again_and_never_runs(colors, tmp_path, damage):
    expected, _ = open_colors(colors)
    damage(colors / CACHE_NAME, Calls(os.mkdir, str(tmp_path / "executed")))
    gallery, seen = open_colors(colors)
    assert len(seen) == 4 and np.array_equal(gallery.embeddings, expected.embeddings)
    assert not (tmp_path / "executed").exists() and open_colors(colors)[1] == []


def test_a_cache_that_cannot_be_written_is_reported_and_the_gallery_opens(colors):
    (colors / CACHE_NAME / "in the way").mkdir(parents=True)
    gallery, _ = open_colors(colors)
    assert len(gallery.paths) == 4 and len(gallery.skipped) == 1 and CACHE_NAME in gallery.skipped[0]


# the gallery's own impostors

def made_gallery(rng, people=40, images=3, size=8):
    """Return a Gallery without files, whose rows are shuffled."""
    embeddings = rng.normal(size=(people * images, size)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    identity = rng.permutation(np.repeat(np.arange(people), images)).astype(np.int32)
    return Gallery(Path("people"), [f"{row}.jpg" for row in range(len(identity))],
                   [f"person {number}" for number in range(people)], identity, embeddings, [""] * len(identity),
                   np.zeros(len(identity), bool), np.zeros(0), 0, [])


def test_the_tail_of_twenty_people_or_more_is_fitted_and_kept(monkeypatch, tmp_path):
    gallery = made_gallery(np.random.default_rng(1), size=64)
    few = gallery.identity < 19
    assert len(fit_gallery_tail(gallery.embeddings[few], gallery.identity[few])) == 0
    slope, intercept = fit_gallery_tail(gallery.embeddings, gallery.identity)
    assert slope == pytest.approx(1 / 8, abs=0.03) and intercept == pytest.approx(0, abs=0.03)  # random in 64-D
    monkeypatch.setattr(gallery_module, "MAX_TAIL_IMAGES", 60)
    assert fit_gallery_tail(gallery.embeddings, gallery.identity) == pytest.approx([slope, intercept], abs=0.03)

    rng = np.random.default_rng(2)
    for number in range(20):
        draw(tmp_path / f"{number}.png", tuple(rng.integers(0, 256, 3).tolist()))
    opened, _ = open_colors(tmp_path)
    assert opened.tail.shape == (2,)
    monkeypatch.setattr(gallery_module, "fit_gallery_tail", None)  # fitting again would fail
    assert np.array_equal(open_colors(tmp_path)[0].tail, opened.tail)


def test_one_person_under_two_names_does_not_move_the_tail_of_the_others():
    gallery = made_gallery(np.random.default_rng(3), size=64)
    expected = fit_gallery_tail(gallery.embeddings, gallery.identity)
    gallery.embeddings[gallery.identity == 1] = gallery.embeddings[gallery.identity == 0]
    assert fit_gallery_tail(gallery.embeddings, gallery.identity) == pytest.approx(expected, abs=0.01)


def test_an_image_replaced_by_one_of_equal_size_and_time_is_embedded_again(colors):
    image = colors / "blue.bmp"
    for color in ((0, 0, 255), (0, 0, 30)):
        draw(image, color)
        os.utime(image, (10 ** 9, 10 ** 9))
        gallery, seen = open_colors(colors)
        assert "blue.bmp" in seen
        assert gallery.embeddings[gallery.paths.index("blue.bmp")][2] == pytest.approx(color[2] / 255)
        time.sleep(0.02)  # a tick of the file system's clock
