"""Lists of pairs, and a network's metrics on them."""
from itertools import product

import numpy as np
import pytest
import torch
from conftest import ROOT, write_rows
from PIL import Image

from utils.common.errors import UserError
from utils.evaluation.embedding import inference_copy
from utils.evaluation.metrics import fold_of_pairs
from utils.evaluation.pairs import Pairs, embed_pairs, pair_metrics, read_pairs, with_even_folds
from utils.weights.checkpoint import load_embedder

OFFICIAL = ROOT / "model_data" / "lfw_pair.txt"
# Two folds of one genuine and one impostor pair, over five images.
LIST = "2\t1\nAnn\t1\t2\nAnn\t1\tBob\t1\nBob\t1\t12\nCid\t3\tAnn\t2\n"
OWN = "Ann/Ann_0001.jpg Ann/Ann_0002.jpg 1\nAnn/Ann_0001.jpg Bob/Bob_0001.jpg 0\n" \
      "Bob/Bob_0001.jpg Bob/Bob_0012.jpg 1\nCid/Cid_0003.jpg Ann/Ann_0002.jpg 0\n"
IMAGES = ["Ann/Ann_0001", "Ann/Ann_0002", "Bob/Bob_0001", "Bob/Bob_0012", "Cid/Cid_0003"]


class FakeNet(torch.nn.Module):
    """Embeds images by a function."""

    def __init__(self, function):
        super().__init__()
        self.parameter, self.function, self.embedding_size = torch.nn.Parameter(torch.zeros(1)), function, 4

    def forward(self, images):
        return self.function(images)


@pytest.fixture
def tiny(tmp_path):
    """read(text) returns the Pairs of a list over five images, each of one color. It has attributes folder and path."""
    for number, name in enumerate(IMAGES):
        path = tmp_path / "lfw" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (112, 112), (50 * number, 90, 255 - 50 * number)).save(path)

    def read(text=LIST):
        read.path.write_text(text, encoding="utf-8")
        return read_pairs(read.path, read.folder)

    read.path, read.folder = tmp_path / "lfw_pair.txt", tmp_path / "lfw"
    return read


def names(pairs, indices):
    return [pairs.paths[index].stem for index in indices]


def evaluate(net, pairs, **options):
    return pair_metrics(embed_pairs(net, pairs, **options), pairs)


def test_pairs_are_indices_into_images_that_are_listed_once(tiny):
    pairs = tiny()
    assert sorted(pairs.paths) == sorted(tiny.folder / f"{name}.jpg" for name in IMAGES)
    assert names(pairs, pairs.first) == ["Ann_0001", "Ann_0001", "Bob_0001", "Cid_0003"]
    assert names(pairs, pairs.second) == ["Ann_0002", "Bob_0001", "Bob_0012", "Ann_0002"]
    assert pairs.genuine.tolist() == [True, False, True, False] and pairs.genuine.dtype == bool
    assert (pairs.folds, pairs.name) == (2, "LFW")
    assert pairs.identities == [path.parent.name for path in pairs.paths]
    assert read_pairs(tiny.path.rename(tiny.path.with_name("mine.txt")), tiny.folder).name == "mine"


@pytest.mark.parametrize("name", ["Ann Lee", "李 雷 2", "Ann 1"])
def test_names_may_hold_spaces_if_tabs_separate_the_fields(tiny, name):
    (tiny.folder / "Ann").rename(tiny.folder / name)
    for path in (tiny.folder / name).iterdir():
        path.rename(path.with_name(path.name.replace("Ann", name)))
    pairs = tiny(LIST.replace("Ann", name) + "\n")
    assert names(pairs, (pairs.first[0], pairs.second[3])) == [f"{name}_0001", f"{name}_0002"]


@pytest.mark.parametrize("text", [LIST.replace("\t", " "), LIST.replace("\n", "\r\n"), "\ufeff" + LIST, LIST + "\n\n",
                                  LIST.rstrip("\n")])
def test_spaces_windows_line_ends_a_bom_and_empty_lines_at_the_end_do_not_matter(tiny, text):
    expected, found = tiny(), tiny(text)
    assert found.paths == expected.paths and np.array_equal(found.second, expected.second)


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".jpeg"])
def test_images_may_have_other_suffixes(tiny, suffix):
    path = tiny.folder / "Bob" / "Bob_0001.jpg"
    path.rename(path.with_suffix(suffix))
    assert path.with_suffix(suffix) in tiny().paths


@pytest.mark.parametrize("text, words", [
    (LIST.replace("2\t1", "", 1), "line 1: .*`10 300`"), (LIST.replace("2\t1", "10", 1), "line 1: .*`10 300`"),
    (LIST.replace("2\t1", "a b", 1), "line 1: .*`10 300`"), (LIST.replace("2\t1", "1 2", 1), "line 1: .*`10 300`"),
    (LIST + "Ann 1 2\n", "promises 4 pairs, 5 follow"), ("10 0\n", "line 1"),
    (LIST.replace("Bob\t1\t12", "Ann"), "line 4: expected `name n m` or `name n name m`"),
    (LIST.replace("Bob\t1\t12", "Ann one 2"), "line 4"), (LIST.replace("Bob\t1\t12", "Ann 1 Bob"), "line 4"),
    (LIST.replace("Bob\t1\t12", "Ann 1 -2"), "line 4"), (LIST.replace("Bob\t1\t12", "Ann 1 Bob 1 2"), "line 4"),
    (OWN + "a.jpg b.jpg yes", "line 5: expected `path path 1` or `path path 0`"), (OWN + "a.jpg 1", "line 5"),
    (OWN.replace(" 0\n", " 1\n"), "found 4 and 0")])
def test_a_malformed_list_is_an_error_that_names_the_line(tiny, text, words):
    with pytest.raises(UserError, match=rf"lfw_pair\.txt.*{words}"):
        tiny(text)


@pytest.mark.parametrize("text", [LIST, OWN])
def test_missing_images_are_an_error_that_names_the_first_and_the_count(tiny, text):
    for name in ("Bob/Bob_0001", "Bob/Bob_0012"):
        (tiny.folder / f"{name}.jpg").unlink()
    with pytest.raises(UserError, match=r"lacks 2 of the 5 images in .*lfw_pair\.txt, such as .*Bob_0001\.jpg:"):
        tiny(text)


def test_a_list_of_own_pairs_holds_paths(tiny):
    pairs, expected = tiny(OWN), tiny()
    assert set(pairs.paths) == set(expected.paths)
    assert (pairs.folds, pairs.name, pairs.identities) == (2, "lfw_pair", None)
    found = set(zip(names(pairs, pairs.first), names(pairs, pairs.second), pairs.genuine.tolist()))
    assert found == set(zip(names(expected, expected.first), names(expected, expected.second),
                            expected.genuine.tolist()))


def test_folds_of_own_pairs_hold_both_kinds_evenly():
    for genuine, impostor in product((2, 3, 4, 11, 15, 20, 57), (2, 5, 11, 14, 36, 300)):
        flags = np.repeat([True, False], (genuine, impostor))
        pairs = with_even_folds(Pairs([], np.arange(len(flags)), np.arange(len(flags)), flags, 10, "own"), "own.txt")
        assert np.array_equal(flags[pairs.first], pairs.genuine) and len(set(pairs.second)) == len(flags)
        fold_of = fold_of_pairs(len(flags), pairs.folds)
        for kind, count in ((pairs.genuine, genuine), (~pairs.genuine, impostor)):
            in_fold = np.bincount(fold_of[kind], minlength=pairs.folds)
            assert in_fold.min() >= 1 and np.ptp(in_fold) <= 2, (genuine, impostor, count)


@pytest.mark.parametrize("value, batch_size, words", [
    (0.5, 64, "every image the same embedding"), (0.5, 1, "have collapsed"),
    (float("nan"), 64, "5 of 5 images an embedding that is not finite")])
def test_a_network_with_collapsed_or_nan_embeddings_has_no_metrics(tiny, value, batch_size, words):
    net = FakeNet(lambda images: torch.full((len(images), 4), value))
    with pytest.raises(UserError, match=f"no metrics on LFW: .*{words}"):
        evaluate(net, tiny(), batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_each_image_goes_through_the_network_once_and_back_to_its_pair(tiny, batch_size):
    seen = []

    def mean_color(images):
        seen.extend(images[:, 0, 0, 0].tolist())
        return torch.nn.functional.pad(images.mean((2, 3)), (0, 1))

    pairs = tiny()
    _, distances = evaluate(FakeNet(mean_color), pairs, batch_size=batch_size)
    assert len(seen) == 5 and len(set(seen)) == 5
    colors = np.array([np.asarray(Image.open(path)).mean((0, 1)) / 127.5 - 1 for path in pairs.paths])
    np.testing.assert_allclose(distances, np.linalg.norm(colors[pairs.first] - colors[pairs.second], axis=1), atol=1e-5)


def test_the_list_in_the_repository_is_the_official_one(shared):
    assert OFFICIAL.read_bytes() == (shared / "lfw" / "pairs.txt").read_bytes()
    pairs = read_pairs(OFFICIAL, shared / "lfw" / "images")
    assert len(pairs.paths) == len(set(pairs.paths)) == 7701
    assert len(pairs.first) == len(pairs.second) == 6000 and pairs.folds == 10
    assert np.array_equal(pairs.genuine, np.tile(np.repeat([True, False], 300), 10))
    same = [pairs.identities[first] == pairs.identities[second] for first, second in zip(pairs.first, pairs.second)]
    assert np.array_equal(same, pairs.genuine)


def test_the_published_weights_reach_their_accuracy_on_two_folds(shared, published_weights, tmp_path):
    lines = OFFICIAL.read_text(encoding="utf-8").splitlines()
    rows = [row for start in (1, 301, 601, 901) for row in lines[start:start + 150]]  # of both kinds of each fold
    pairs = read_pairs(write_rows(tmp_path / "two.txt", ["2 150", *rows]), shared / "lfw" / "images")
    metrics, distances = evaluate(inference_copy(load_embedder(published_weights)), pairs)
    assert metrics.pairs == len(distances) == 600 and metrics.folds == 2
    assert 0.97 < metrics.accuracy < 0.99 and 1.1 < metrics.threshold < 1.25 and metrics.auc > 0.99
