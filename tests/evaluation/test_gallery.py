"""One face against a folder of people: who is nearest, and what is embedded again."""
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_user_error
from PIL import Image

from arcface import Arcface, Candidate
from utils.common.errors import UserError
from utils.evaluation import gallery as gallery_module
from utils.evaluation.embedding import InvalidEmbeddings
from utils.evaluation.gallery import (
    CACHE_NAME,
    FURTHER_PARTS,
    Gallery,
    fit_own_tail,
    nearest_people,
    open_gallery,
)

PEOPLE = {"王小明": "Adrien_Brody", "Andre; Agassi": "Andre_Agassi", "Abel Pacheco": "Abel_Pacheco"}
SETTINGS = {"weights_sha256": "one", "letterbox_image": True}


@pytest.fixture(scope="module")
def faces(shared):
    """faces(person) -> the pictures of one of PEOPLE."""
    return lambda person: sorted((shared / "lfw" / "images" / PEOPLE[person]).iterdir())


@pytest.fixture
def people(tmp_path, faces):
    """A gallery of the first two pictures of each of PEOPLE."""
    for person in PEOPLE:
        (tmp_path / "people" / person).mkdir(parents=True)
        for path in faces(person)[:2]:
            shutil.copyfile(path, tmp_path / "people" / person / path.name)
    return tmp_path / "people"


class Embedder:
    """Embeds a picture as its mean colour, and remembers what it was asked for."""

    def __init__(self):
        self.seen = []

    def __call__(self, paths):
        colours = []
        for path in paths:
            self.seen.append(path.name)
            try:
                colours.append(np.asarray(Image.open(path)).mean((0, 1)))
            except OSError:
                raise UserError(f"{path} does not decode") from None
        return np.array(colours, np.float32).reshape(-1, 3) / 255


@pytest.fixture
def embed():
    return Embedder()


@pytest.fixture
def colours(tmp_path):
    """A gallery of plain pictures: two people in folders, one loose."""
    for name, colour in {"red/1.png": (255, 0, 0), "red/2.png": (200, 0, 0), "green/1.png": (0, 255, 0),
                         "blue.png": (0, 0, 255)}.items():
        draw(tmp_path / "colours" / name, colour)
    return tmp_path / "colours"


def draw(path, colour, size=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), colour).save(path)


def people_of(gallery):
    """-> {path: name}."""
    return dict(zip(gallery.paths, (gallery.people[number] for number in gallery.person)))


def seen_when_opened(folder, settings=SETTINGS):
    """-> (Gallery, sorted names of the pictures that were embedded for it)."""
    embed = Embedder()
    gallery = open_gallery(folder, embed, settings)
    return gallery, sorted(embed.seen)


# the answer

def test_a_face_finds_its_person_whose_distance_is_that_of_the_nearest_picture(arcface, people, faces):
    for person in PEOPLE:
        query = faces(person)[-1]
        found = arcface.identify(query, people)
        assert [type(candidate) for candidate in found] == [Candidate] * 3 and found[0].name == person
        assert found == sorted(found, key=lambda candidate: candidate.distance)
        for candidate in found:
            distances = {path: arcface.detect_image(query, path) for path in (people / candidate.name).iterdir()}
            assert candidate.distance == pytest.approx(min(distances.values()), abs=1e-6)
            assert distances[candidate.picture] == min(distances.values())
            assert candidate.similarity == pytest.approx(1 - candidate.distance ** 2 / 2)
            assert candidate.threshold < arcface.threshold
            assert candidate.same is (candidate.distance < candidate.threshold)
            assert candidate.verdict == ("same" if candidate.same else "not sure"
                                         if candidate.distance < candidate.unsure[1] else "different")
    assert any(candidate.same for candidate in found) and not all(candidate.same for candidate in found)


def test_a_picture_of_the_gallery_is_at_distance_zero(arcface, people, faces):
    assert arcface.identify(faces("王小明")[0], people)[0].distance == pytest.approx(0, abs=1e-5)


def test_top_limits_the_people_and_not_their_pictures(arcface, people, faces):
    query = faces("Abel Pacheco")[-1]
    everyone = arcface.identify(query, people, top=50)
    assert len(everyone) == 3
    for top in (1, 2):
        assert [candidate.name for candidate in arcface.identify(query, people, top=top)] == [
            candidate.name for candidate in everyone[:top]]
    with pytest.raises(ValueError, match="top=0"):
        arcface.identify(query, people, top=0)


def test_loose_pictures_are_named_by_their_stem_and_join_the_folder_of_that_name(colours, embed):
    draw(colours / "red.bmp", (99, 0, 0))
    draw(colours / "blue.jpg", (0, 0, 99))
    gallery = open_gallery(colours, embed, SETTINGS)
    assert people_of(gallery) == {
        "red/1.png": "red", "red/2.png": "red", "red.bmp": "red", "green/1.png": "green", "blue.png": "blue",
        "blue.jpg": "blue"}


def test_hidden_and_other_files_are_no_pictures(colours, embed):
    for name in (".hidden.png", ".git/1.png"):
        draw(colours / name, (1, 2, 3))
    (colours / "red" / "notes.txt").write_text("no picture")
    (colours / "png").write_text("no picture")
    gallery = open_gallery(colours, embed, SETTINGS)
    assert len(gallery.paths) == 4 and gallery.skipped == []


def test_deeper_folders_and_pictures_of_kinds_that_are_not_read_are_counted_and_named(colours, embed):
    for name in ("red/deeper/1.png", "green/deeper/1.png"):
        draw(colours / name, (1, 2, 3))
    for name in ("red/1.CR2", "2.cr2", "red/1.psd"):
        (colours / name).write_bytes(b"raw")
    gallery = open_gallery(colours, embed, SETTINGS)
    raw, photoshop, deep = gallery.skipped
    assert len(gallery.paths) == 4
    assert "2 .cr2 files" in raw and "2.cr2" in raw and "1 .psd" in photoshop
    assert "2 folders inside a person's folder" in deep and str(colours / "green" / "deeper") in deep
    assert str(colours) in deep.partition("): ")[2]
    with pytest.raises(UserError, match=r"holds no picture to compare with .*inside a person's folder"):
        draw(colours.parent / "set" / "train" / "ann" / "1.png", (1, 2, 3))
        open_gallery(colours.parent / "set", embed, SETTINGS)


# what is embedded again

def test_a_second_query_embeds_nothing_but_its_picture(arcface, people, faces, monkeypatch):
    query = faces("王小明")[-1]
    first, embedded, embed = arcface.identify(query, people), [], arcface.embed
    monkeypatch.setattr(arcface, "embed", lambda images, **named: embedded.extend(images) or embed(images, **named))
    assert arcface.identify(query, people) == first and embedded == [query]
    people.rename(people.with_name("moved"))
    assert [person.name for person in arcface.identify(query, people.with_name("moved"))] == [c.name for c in first]
    assert embedded == [query] * 2


def test_only_new_and_changed_pictures_are_embedded_again_and_removed_ones_disappear(colours):
    _, seen = seen_when_opened(colours)
    assert seen == ["1.png", "1.png", "2.png", "blue.png"]
    assert seen_when_opened(colours)[1] == []

    draw(colours / "new.png", (9, 9, 9))
    gallery, seen = seen_when_opened(colours)
    assert seen == ["new.png"] and "new" in gallery.people and gallery.embedded == 1
    assert colours.joinpath(".embeddings.1.npz").is_file()

    stat = (colours / "blue.png").stat()
    draw(colours / "blue.png", (0, 0, 30), size=64)  # another size in bytes at the same time
    os.utime(colours / "blue.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    gallery, seen = seen_when_opened(colours)
    assert seen == ["blue.png"] and gallery.embeddings[gallery.paths.index("blue.png")][2] == pytest.approx(30 / 255)
    assert [path.name for path in colours.glob(".*")] == [CACHE_NAME]

    stat = (colours / "new.png").stat()
    os.utime(colours / "new.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))  # another time, the same size
    assert seen_when_opened(colours)[1] == ["new.png"]

    (colours / "red").rename(colours.with_name("elsewhere"))
    gallery, seen = seen_when_opened(colours)
    assert seen == [] and "red" not in gallery.people and len(gallery.embeddings) == 3
    colours.with_name("elsewhere").rename(colours / "red")  # what was removed is not remembered either
    assert seen_when_opened(colours)[1] == ["1.png", "2.png"]


def test_other_weights_or_preprocessing_embed_everything_again(colours):
    seen_when_opened(colours)
    for settings in (SETTINGS | {"weights_sha256": "two"}, SETTINGS):
        assert len(seen_when_opened(colours, settings)[1]) == 4
    assert seen_when_opened(colours)[1] == []


def test_the_settings_of_an_embedding_tell_weights_and_preprocessing_apart(arcface, published_weights, tmp_path):
    found = [arcface.embedding_settings()]
    found.append(Arcface(model_path=published_weights, cuda=False, letterbox_image=False).embedding_settings())
    found.append(Arcface(model_path=published_weights, cuda=False, input_shape=[100, 112]).embedding_settings())
    state = torch.load(published_weights, weights_only=True)
    state[next(iter(state))] += 1
    torch.save(state, tmp_path / "other.pth")
    found.append(Arcface(model_path=tmp_path / "other.pth", cuda=False).embedding_settings())
    assert len({json.dumps(settings, sort_keys=True) for settings in found}) == 4
    moved = shutil.copyfile(published_weights, tmp_path / "moved.pth")
    assert Arcface(model_path=moved, cuda=False, threshold=0.1).embedding_settings() == found[0]


# a cache that is no good

class Malicious:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def change(cache, **arrays):
    """Write the cache again with some of its arrays replaced."""
    with np.load(cache) as content:
        np.savez(cache, **(dict(content) | arrays))


@pytest.mark.parametrize("spoil", [
    lambda cache, evil: cache.write_bytes(b""), lambda cache, evil: cache.write_bytes(b"a text"),
    lambda cache, evil: cache.write_bytes(cache.read_bytes()[:-300]),
    lambda cache, evil: cache.write_bytes(cache.read_bytes().replace(b"blue.png", b"blau.png")),
    lambda cache, evil: cache.write_bytes(pickle.dumps(evil)),
    lambda cache, evil: change(cache, embeddings=np.array([evil] * 4, object)),
    lambda cache, evil: change(cache, paths=np.array(evil, object)),
    lambda cache, evil: change(cache, embeddings=np.zeros((4, 2), np.float32)),
    lambda cache, evil: change(cache, embeddings=np.zeros((4, 3))),
    lambda cache, evil: change(cache, embeddings=np.full((4, 3), np.nan, np.float32)),
    lambda cache, evil: change(cache, stamps=np.zeros((3, 2), np.int64)),
    lambda cache, evil: change(cache, own_tail=np.array([evil], object)),
    lambda cache, evil: np.save(cache.open("wb"), np.zeros(3)),
    lambda cache, evil: zipfile.ZipFile(cache, "w").close()],
    ids=["empty", "text", "truncated", "flipped bytes", "pickle", "pickled embeddings", "pickled paths", "another size",
         "another type", "nan", "too few stamps", "pickled tail", "npy", "empty zip"])
def test_a_damaged_or_hostile_cache_is_made_anew_and_never_runs(colours, tmp_path, spoil):
    expected, _ = seen_when_opened(colours)
    spoil(colours / CACHE_NAME, Malicious(tmp_path / "executed"))
    gallery, seen = seen_when_opened(colours)
    assert len(seen) == 4 and np.array_equal(gallery.embeddings, expected.embeddings)
    assert not (tmp_path / "executed").exists()
    assert seen_when_opened(colours)[1] == [] and [path.name for path in colours.glob(".*")] == [CACHE_NAME]


def test_a_place_that_cannot_be_written_is_said_and_the_answer_comes_all_the_same(colours, embed):
    (colours / CACHE_NAME / "in the way").mkdir(parents=True)
    gallery = open_gallery(colours, embed, SETTINGS)
    assert len(gallery.paths) == 4 and CACHE_NAME in gallery.note and "\n" not in gallery.note


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_said_and_the_answer_comes_all_the_same(colours, embed):
    colours.chmod(0o555)
    try:
        gallery = open_gallery(colours, embed, SETTINGS)
    finally:
        colours.chmod(0o755)
    assert len(gallery.paths) == 4 and CACHE_NAME in gallery.note


# a cache of parts

def grow(folder, first, last):
    """Open the gallery after each further picture of these numbers. -> the last Gallery."""
    for place in range(first, last):
        draw(folder / "new" / f"{place:02}.png", (place, 9, 9))
        gallery, seen = seen_when_opened(folder)
        assert seen == [f"{place:02}.png"]
    return gallery


def test_further_pictures_are_added_in_parts_which_become_one_where_they_are_many(colours):
    seen_when_opened(colours)
    first = (colours / CACHE_NAME).read_bytes()
    grow(colours, 0, FURTHER_PARTS)
    assert (colours / CACHE_NAME).read_bytes() == first and len(list(colours.glob(".*"))) == FURTHER_PARTS + 1
    gallery = grow(colours, FURTHER_PARTS, FURTHER_PARTS + 1)
    assert [path.name for path in colours.glob(".*")] == [CACHE_NAME]
    again, seen = seen_when_opened(colours)
    assert seen == [] and again.paths == gallery.paths and np.array_equal(again.embeddings, gallery.embeddings)


@pytest.mark.parametrize("spoil", [
    lambda part: part.write_bytes(part.read_bytes()[:-40]), lambda part: part.unlink(),
    lambda part: part.with_name(".embeddings.3.npz").write_bytes(part.read_bytes()),
    lambda part: shutil.copyfile(part.with_name(CACHE_NAME), part)],
    ids=["cut", "gone", "one twice", "first twice"])
def test_parts_that_are_damaged_gone_or_there_twice_change_no_answer(colours, spoil):
    seen_when_opened(colours)
    expected = grow(colours, 0, 2)
    spoil(colours / ".embeddings.1.npz")
    gallery, _ = seen_when_opened(colours)
    assert gallery.paths == expected.paths and np.array_equal(gallery.embeddings, expected.embeddings)
    assert seen_when_opened(colours)[1] == [] and [path.name for path in colours.glob(".*")] == [CACHE_NAME]


def test_a_kill_between_writing_all_anew_and_removing_the_parts_leaves_the_right_rows(colours, monkeypatch):
    seen_when_opened(colours)
    grow(colours, 0, 2)
    (colours / "blue.png").unlink()
    with monkeypatch.context() as killed:
        killed.setattr("utils.evaluation.gallery.remove_parts", lambda folder: None)
        seen_when_opened(colours)
    assert len(list(colours.glob(".*"))) == 3
    gallery, seen = seen_when_opened(colours)
    assert seen == [] and "blue.png" not in gallery.paths
    assert np.array_equal(gallery.embeddings, Embedder()([colours / path for path in gallery.paths]))
    assert [path.name for path in colours.glob(".*")] == [CACHE_NAME]


# many people

def made_gallery(rng, people=40, pictures=3, size=8):
    """A Gallery without files, its rows in no order of people."""
    embeddings = rng.normal(size=(people * pictures, size)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    person = rng.permutation(np.repeat(np.arange(people), pictures)).astype(np.int32)
    return Gallery(Path("people"), [f"{row}.jpg" for row in range(len(person))],
                   [f"person {number}" for number in range(people)], person, embeddings, 0, [], None, np.zeros(0))


def test_the_nearest_people_are_those_of_a_loop_over_all_pictures():
    rng = np.random.default_rng(0)
    gallery, query = made_gallery(rng), rng.normal(size=8).astype(np.float32)
    query /= np.linalg.norm(query)
    distances = np.linalg.norm(gallery.embeddings.astype(np.float64) - query, axis=1)
    best = {}
    for row in np.argsort(distances):
        best.setdefault(gallery.person[row], row)
    expected = [(gallery.people[person], pytest.approx(distances[row]), gallery.paths[row])
                for person, row in best.items()]
    for top in (1, 7, 40, 99):
        assert nearest_people(query, gallery, top) == expected[:top]


def test_twenty_people_or_more_tell_how_near_they_come_and_it_is_remembered(monkeypatch, tmp_path):
    gallery = made_gallery(np.random.default_rng(1), size=64)
    assert len(fit_own_tail(gallery.embeddings, gallery.person, 19)) == 0  # too few people to tell
    slope, start = fit_own_tail(gallery.embeddings, gallery.person, 40)
    assert slope == pytest.approx(1 / 8, abs=0.03) and start == pytest.approx(0, abs=0.03)  # random directions in 64-D
    monkeypatch.setattr(gallery_module, "ASKED_PICTURES", 60)
    assert fit_own_tail(gallery.embeddings, gallery.person, 40) == pytest.approx([slope, start], abs=0.03)

    rng = np.random.default_rng(2)
    for number in range(20):
        draw(tmp_path / f"{number}.png", tuple(rng.integers(0, 256, 3).tolist()))
    opened, _ = seen_when_opened(tmp_path)
    assert opened.own_tail.shape == (2,)
    monkeypatch.setattr(gallery_module, "fit_own_tail", None)  # so that it would fail if it were asked again
    assert np.array_equal(seen_when_opened(tmp_path)[0].own_tail, opened.own_tail)


def test_one_person_under_two_names_does_not_move_the_tail_of_the_others():
    gallery = made_gallery(np.random.default_rng(3), size=64)
    expected = fit_own_tail(gallery.embeddings, gallery.person, 40)
    gallery.embeddings[gallery.person == 1] = gallery.embeddings[gallery.person == 0]
    assert fit_own_tail(gallery.embeddings, gallery.person, 40) == pytest.approx(expected, abs=0.01)


# pictures that are no good

def test_undecodable_pictures_are_skipped_and_named_and_tried_again(colours, embed):
    for name in ("bad.png", "red/bad; 图.png"):
        (colours / name).write_text("no picture")
    for _ in range(2):
        gallery = open_gallery(colours, embed, SETTINGS)
        assert len(gallery.paths) == 4 and len(gallery.skipped) == 2
        assert str(colours / "bad.png") in gallery.skipped[0] and "bad; 图.png" in gallery.skipped[1]
    draw(colours / "bad.png", (7, 7, 7))
    gallery, seen = seen_when_opened(colours)
    assert seen.count("bad.png") >= 1 and "1.png" not in seen and "bad" in gallery.people


@pytest.mark.skipif(os.name == "nt", reason="links and such names need rights there")
def test_dangling_links_and_names_that_are_no_unicode_do_not_stop_it(colours):
    (colours / "gone.png").symlink_to(colours / "nowhere.png")
    odd = os.fsdecode(b"\xff.png")
    shutil.copyfile(colours / "blue.png", colours / odd)
    gallery, _ = seen_when_opened(colours)
    assert odd in gallery.paths and len(gallery.skipped) == 1 and "gone.png" in gallery.skipped[0]
    assert seen_when_opened(colours)[1] == []


@pytest.mark.parametrize("content", [[], ["notes.txt"], ["bad.png", "ann/bad.png"]])
def test_a_gallery_without_a_usable_picture_is_a_user_error(tmp_path, embed, content):
    (tmp_path / "people").mkdir()
    for name in content:
        (tmp_path / "people" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "people" / name).write_text("no picture")
    with pytest.raises(UserError, match="people holds no picture") as caught:
        open_gallery(tmp_path / "people", embed, SETTINGS)
    assert "\n" not in str(caught.value) and ("bad.png" in str(caught.value)) == ("bad.png" in content)


def test_weights_that_tell_nobody_apart_are_no_fault_of_the_pictures(colours):
    def embed(paths):
        if paths:
            raise InvalidEmbeddings("weights.pth: these weights give every picture the same embedding")
        return np.zeros((0, 3), np.float32)
    with pytest.raises(InvalidEmbeddings, match=r"^weights\.pth"):
        open_gallery(colours, embed, SETTINGS)
    assert list(colours.glob(".*")) == []


def test_a_gallery_that_is_no_folder_is_a_user_error(tmp_path, embed):
    for path in (tmp_path / "gone", tmp_path / "file"):
        (tmp_path / "file").write_text("a file")
        with pytest.raises(UserError, match=f"{path.name} is not a folder"):
            open_gallery(path, embed, SETTINGS)


# the script

def test_predict_prints_a_table_of_people_and_saves_a_strip(run_script, published_weights, people, faces, tmp_path):
    (people / "bad.jpg").write_text("no picture")
    result = run_script("predict.py", faces("王小明")[-1], "--gallery", people, "--top", 2, "--save", "strip.png",
                        "--model-path", published_weights, "--no-cuda", "--threshold", 1.167)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    lines = result.stdout.splitlines()
    assert any(line.startswith("skipped: ") and "bad.jpg" in line for line in lines)
    first, second = (line for line in lines if line.startswith((" 1 ", " 2 ")))
    assert "same person" in first and "王小明" in first and "different people" in second
    assert float(first.split()[1]) < 1.167 < float(second.split()[1])
    assert "Verdict: 王小明 (threshold 1.167 on the distance)" in lines
    with Image.open(tmp_path / "strip.png") as strip:
        assert strip.width > strip.height > 112
    assert Path(people, CACHE_NAME).is_file()


@pytest.mark.parametrize("arguments, word", [
    (["--gallery", "people"], "one picture"), (["a.jpg", "b.jpg", "--gallery", "people"], "one picture"),
    (["a.jpg", "--gallery", "people", "--top", "0"], "--top"), (["a.jpg"], "two pictures")])
def test_predict_with_the_wrong_number_of_pictures_is_a_user_error(call_script, arguments, word):
    assert_user_error(call_script("predict.py", *arguments), word)
