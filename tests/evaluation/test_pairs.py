"""The LFW list of pairs and a network's figures on it."""
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from utils.common.errors import UserError
from utils.evaluation.embedding import inference_copy
from utils.evaluation.pairs import (
    check_images,
    embed_pairs,
    looks_unaligned,
    pair_distances,
    pair_metrics,
    read_pairs,
)
from utils.weights.checkpoint import load_embedder

OFFICIAL = ROOT / "model_data" / "lfw_pair.txt"
# Two folds of one genuine and one impostor pair, over five pictures.
LIST = "2\t1\nAnn\t1\t2\nAnn\t1\tBob\t1\nBob\t1\t12\nCid\t3\tAnn\t2\n"
PICTURES = ["Ann/Ann_0001", "Ann/Ann_0002", "Bob/Bob_0001", "Bob/Bob_0012", "Cid/Cid_0003"]


class FakeNet(torch.nn.Module):
    """Embeds every picture as what `function` makes of it."""

    def __init__(self, function):
        super().__init__()
        self.parameter, self.function, self.embedding_size = torch.nn.Parameter(torch.zeros(1)), function, 4

    def forward(self, images):
        return self.function(images)


@pytest.fixture
def tiny(tmp_path):
    """read(text) -> Pairs of that list over five small pictures, each of another colour; .folder, .path."""
    for number, name in enumerate(PICTURES):
        path = tmp_path / "lfw" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (112, 112), (50 * number, 90, 255 - 50 * number)).save(path)

    def read(text=LIST):
        read.path.write_text(text, encoding="utf-8")
        return read_pairs(read.path, read.folder)

    read.path, read.folder = tmp_path / "pairs.txt", tmp_path / "lfw"
    return read


def evaluate(net, pairs, **options):
    return pair_metrics(embed_pairs(net, pairs, **options), pairs)


@pytest.mark.parametrize("name", ["Ann Lee", "李 雷 2", "Ann 1"])
def test_names_may_hold_spaces_where_tabs_divide_a_line(tiny, name):
    (tiny.folder / "Ann").rename(tiny.folder / name)
    for path in (tiny.folder / name).iterdir():
        path.rename(path.with_name(path.name.replace("Ann", name)))
    pairs = tiny(LIST.replace("Ann", name) + "\n")
    assert [pairs.paths[index].name for index in (pairs.first[0], pairs.second[3])] == [
        f"{name}_0001.jpg", f"{name}_0002.jpg"] and pairs.genuine.tolist() == [True, False] * 2


def test_pairs_are_indices_into_pictures_that_are_listed_once(tiny):
    pairs = tiny()
    assert sorted(pairs.paths) == sorted(tiny.folder / f"{name}.jpg" for name in PICTURES)

    def names(indices):
        return [pairs.paths[index].stem for index in indices]

    assert names(pairs.first) == ["Ann_0001", "Ann_0001", "Bob_0001", "Cid_0003"]
    assert names(pairs.second) == ["Ann_0002", "Bob_0001", "Bob_0012", "Ann_0002"]
    assert pairs.genuine.tolist() == [True, False, True, False] and pairs.genuine.dtype == bool
    assert pairs.folds == 2


@pytest.mark.parametrize("text", [LIST.replace("\t", " "), LIST.replace("\n", "\r\n"), "\ufeff" + LIST, LIST + "\n\n",
                                  LIST.rstrip("\n")])
def test_spaces_windows_line_ends_a_bom_and_empty_lines_at_the_end_do_not_matter(tiny, text):
    expected, found = tiny(), tiny(text)
    assert found.paths == expected.paths and np.array_equal(found.second, expected.second)


@pytest.mark.parametrize("header", ["", "10", "a b", "2 1 0", "Ann 1 2", "2.0 1"])
def test_a_wrong_first_line_is_an_error_that_names_it(tiny, header):
    with pytest.raises(UserError, match=r"pairs\.txt, line 1: .*`10 300`"):
        tiny(LIST.replace("2\t1", header, 1))


@pytest.mark.parametrize("line", ["Ann", "Ann 1", "Ann one 2", "Ann 1 Bob", "Ann 1 Bob x", "Ann 1 Bob 1 2", "Ann 1 -2"])
def test_a_malformed_line_is_an_error_that_names_its_number(tiny, line):
    with pytest.raises(UserError, match=r"pairs\.txt, line 4: expected `name n m` or `name n name m`"):
        tiny(LIST.replace("Bob\t1\t12", line))


@pytest.mark.parametrize(("text", "count"), [(LIST + "Ann 1 2\n", 5), (LIST.replace("Bob\t1\t12\n", ""), 3)])
def test_more_or_fewer_pairs_than_promised_are_an_error(tiny, text, count):
    with pytest.raises(UserError, match=rf"pairs\.txt: the first line promises 4 pairs, {count} follow"):
        tiny(text)


def test_a_list_whose_folds_mix_other_numbers_of_both_kinds_is_an_error(tiny):
    with pytest.raises(UserError, match=r"pairs\.txt"):
        tiny(LIST.replace("Bob\t1\t12", "Bob\t1\tCid\t3"))


def test_a_list_without_pairs_is_an_error(tiny):
    with pytest.raises(UserError, match=r"pairs\.txt"):
        tiny("10 0\n")


def test_a_missing_list_is_an_error_that_names_it(tiny):
    with pytest.raises(UserError, match=r"nowhere\.txt does not exist"):
        read_pairs(tiny.path.with_name("nowhere.txt"), tiny.folder)


def test_missing_pictures_are_an_error_that_names_the_first_and_the_count(tiny):
    tiny()
    for name in ("Bob/Bob_0001", "Bob/Bob_0012"):
        (tiny.folder / f"{name}.jpg").unlink()
    with pytest.raises(UserError) as error:
        tiny()
    assert "lacks 2 of the 5 images" in str(error.value)
    assert f"{tiny.folder / 'Bob' / 'Bob_0001.jpg'} first" in str(error.value)
    assert "Bob_0012" not in str(error.value)


def test_a_missing_folder_is_an_error_that_names_it(tiny):
    tiny()
    with pytest.raises(UserError, match="nowhere is not a folder"):
        read_pairs(tiny.path, tiny.folder / "nowhere")


def test_distances_are_l2_between_the_pictures_of_a_pair(tiny):
    pairs = tiny()
    embeddings = np.zeros((5, 2), np.float32)
    embeddings[pairs.first[0]], embeddings[pairs.second[0]] = (1, 0), (0, 1)
    distances = pair_distances(torch.from_numpy(embeddings), pairs)
    assert distances.dtype == np.float64
    assert distances.tolist() == pytest.approx([2 ** 0.5, 1, 0, 1])


@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_a_network_with_collapsed_or_nan_embeddings_has_no_figures(tiny, value):
    net = FakeNet(lambda images: torch.full((len(images), 4), value))
    word = "every image the same embedding" if value == 0.5 else "5 of 5 images an embedding that is not finite"
    with pytest.raises(UserError, match=f"no metrics on LFW: .*{word}"):
        evaluate(net, tiny(), workers=2)


def test_a_network_that_collapses_between_batches_has_no_figures(tiny):
    with pytest.raises(UserError, match=r"no metrics on LFW: .* have collapsed"):
        evaluate(FakeNet(lambda images: torch.full((len(images), 4), 0.5)), tiny(), batch_size=1)


def test_distances_in_parts_are_those_of_all_pairs_at_once():
    rng = np.random.default_rng(0)
    embeddings, sides = rng.normal(size=(50, 4)).astype(np.float32), rng.integers(0, 50, (2, 100))
    pairs = SimpleNamespace(first=sides[0], second=sides[1])
    expected = np.linalg.norm(embeddings[sides[0]].astype(np.float64) - embeddings[sides[1]], axis=1)
    for part in (1, 7, 100, 8192):
        assert np.array_equal(pair_distances(embeddings, pairs, part), expected)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_every_picture_goes_through_the_network_once_and_back_to_its_pair(tiny, batch_size):
    seen = []

    def mean_colour(images):
        seen.extend(images[:, 0, 0, 0].tolist())
        return torch.nn.functional.pad(images.mean((2, 3)), (0, 1))

    pairs = tiny()
    _, distances = evaluate(FakeNet(mean_colour), pairs, batch_size=batch_size)
    assert len(seen) == 5 and len(set(seen)) == 5
    colours = np.array([np.asarray(Image.open(path)).mean((0, 1)) / 127.5 - 1 for path in pairs.paths])
    expected = np.linalg.norm(colours[pairs.first] - colours[pairs.second], axis=1)
    np.testing.assert_allclose(distances, expected, atol=1e-5)


def test_the_list_in_the_repository_is_the_official_one(shared):
    assert OFFICIAL.read_bytes() == (shared / "lfw" / "pairs.txt").read_bytes()


def test_the_official_list_has_6000_pairs_over_7701_pictures(shared):
    pairs = read_pairs(OFFICIAL, shared / "lfw" / "images")
    assert len(pairs.paths) == len(set(pairs.paths)) == 7701
    assert len(pairs.first) == len(pairs.second) == 6000 and pairs.folds == 10
    assert np.array_equal(pairs.genuine, np.tile(np.repeat([True, False], 300), 10))
    same = np.array([pairs.paths[a].parent == pairs.paths[b].parent for a, b in zip(pairs.first, pairs.second)])
    assert np.array_equal(same, pairs.genuine)
    assert not looks_unaligned(pairs.paths)


def test_the_original_pictures_look_unaligned(shared):
    assert looks_unaligned(sorted((shared / "lfw_raw_folds1-3").glob("*/*.jpg")))


def test_a_few_pictures_of_another_size_do_not_change_what_the_folder_looks_like(tmp_path):
    sizes = {"mostly_raw": [(250, 250)] * 4 + [(112, 112)], "mostly_aligned": [(112, 112)] * 4 + [(250, 250)]}
    for folder, images in sizes.items():
        (tmp_path / folder).mkdir()
        for number, size in enumerate(images):
            Image.new("RGB", size).save(tmp_path / folder / f"{number}.png")
    assert looks_unaligned(sorted((tmp_path / "mostly_raw").iterdir()))
    assert not looks_unaligned(sorted((tmp_path / "mostly_aligned").iterdir()))


def test_pictures_that_are_there_pass_the_check(tiny):
    check_images(tiny().paths, tiny.folder)


def test_the_published_weights_reach_their_accuracy_on_two_folds(shared, published_weights, tmp_path):
    lines = OFFICIAL.read_text(encoding="utf-8").splitlines()
    Path(tmp_path, "two.txt").write_text("\n".join(["2 300", *lines[1:1201]]), encoding="utf-8")
    pairs = read_pairs(tmp_path / "two.txt", shared / "lfw" / "images")
    net = inference_copy(load_embedder(published_weights))
    progress = []

    def count(iterable, total):
        progress.append(total)
        return iterable

    figures, distances = evaluate(net, pairs, batch_size=256, progress=count)
    assert figures.pairs == len(distances) == 1200 and figures.folds == 2
    assert 0.97 < figures.accuracy < 0.99
    assert 1.1 < figures.threshold < 1.25
    assert distances.min() >= 0 and distances.max() <= 2
    assert figures.auc > 0.99
    assert progress == [-(-len(pairs.paths) // 256)]
