"""insightface's verification files, written here by every writer there is, and eval_LFW.py --bin."""
import codecs
import io
import json
import os
import pickle
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_user_error, jpeg
from PIL import Image

from utils.common.errors import UserError
from utils.evaluation.pairs import pair_distances, read_bin
from utils.faces.images import preprocess


@pytest.fixture(scope="module")
def pictures():
    """Forty small JPEG files, for ten folds of a genuine and an impostor pair."""
    return [jpeg(seed) for seed in range(40)]


GENUINE = [True, False] * 10


# Verification files, by the writers there are

def python3(protocol):
    return lambda pictures, genuine: pickle.dumps((pictures, genuine), protocol)


def arrays(protocol, shape=(-1,)):
    """cv2.imencode returns an array, of older releases (N, 1)."""
    return lambda pictures, genuine: pickle.dumps(
        ([np.frombuffer(picture, np.uint8).copy().reshape(shape) for picture in pictures], genuine), protocol)


def old_numpy(pictures, genuine):
    """The modules as numpy 1 called them."""
    return arrays(3, (-1, 1))(pictures, genuine).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def python2(items):
    """Opcodes of cPickle's protocol 2: PROTO, EMPTY_LIST, (items, APPENDS), booleans, TUPLE2, STOP."""
    def write(pictures, genuine):
        return b"".join([b"\x80\x02", b"]q\x01(", *map(items, pictures), b"e", b"]q\x02(",
                         *(b"\x88" if flag else b"\x89" for flag in genuine), b"e", b"\x86q\x03."])
    return write


def string(picture):
    return b"T" + struct.pack("<i", len(picture)) + picture  # BINSTRING, Python 2's str


def array(picture):
    """numpy.core.multiarray._reconstruct(numpy.ndarray, (0,), "b"), then its state with dtype("u1", 0, 1)."""
    dtype = (b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\x00tb")
    return (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01"
            + b"J" + struct.pack("<i", len(picture)) + b"K\x01\x86" + dtype + b"\x89" + string(picture) + b"tb")


def numpy_flags(make, protocol):
    return lambda pictures, genuine: pickle.dumps((pictures, make(genuine)), protocol)


WRITERS = {
    **{f"Python 3, protocol {protocol}": python3(protocol) for protocol in range(6)},
    **{f"array, protocol {protocol}": arrays(protocol) for protocol in (2, 3, 4, 5)},
    "array (N, 1), protocol 5": arrays(5, (-1, 1)), "array, numpy 1": old_numpy,
    "Python 2": python2(string), "array, Python 2": python2(array),
    **{f"numpy's {name}, protocol {protocol}": numpy_flags(make, protocol) for protocol in (0, 2, 5) for name, make in (
        ("booleans", np.array), ("big-endian numbers", lambda flags: np.array(flags, ">i8")),
        ("list of booleans", lambda flags: list(np.array(flags))), ("floats", np.float32))},
    "Python 2, numpy's booleans": lambda pictures, genuine: python2(string)(pictures, []).replace(
        b"]q\x02(e", array(bytes(genuine)).replace(b"u1", b"b1")),
    "Python 2, protocol 0": lambda pictures, genuine: b"".join([
        b"((lp1\n", *(b"S'%s'\np%d\na" % (codecs.escape_encode(picture)[0], number)
                     for number, picture in enumerate(pictures, 2)), b"(lp99\n".replace(b"99", b"%d" % (
                         len(pictures) + 2)), *(b"I01\na" if flag else b"I00\na" for flag in genuine), b"t."]),
    "ints and tuples": lambda pictures, genuine: pickle.dumps([tuple(pictures), [int(flag) for flag in genuine]], 4)}


@pytest.mark.parametrize("writer", WRITERS)
def test_pictures_and_pairs_come_out_as_they_went_in_whatever_wrote_them(tmp_path, pictures, writer):
    path = tmp_path / "小 cfp;fp.bin"
    path.write_bytes(WRITERS[writer](pictures, GENUINE))
    pairs = read_bin(path)
    assert pairs.genuine.tolist() == GENUINE and pairs.genuine.dtype == bool
    assert (pairs.folds, pairs.name) == (10, "小 cfp;fp")
    for side, first in ((pairs.first, 0), (pairs.second, 1)):
        assert [pairs.paths[place].getvalue() for place in side] == pictures[first::2]
    expected = np.asarray(Image.open(io.BytesIO(pictures[3])))
    assert (preprocess(pairs.paths[pairs.second[1]], (8, 8)) == expected).all()


def test_the_handwritten_pickles_are_what_the_real_unpickler_reads(pictures):
    found, genuine = pickle.loads(python2(array)(pictures, GENUINE), encoding="bytes")
    assert genuine == GENUINE and found[1].dtype == np.uint8 and found[1].shape == (len(pictures[1]), 1)
    assert found[1].tobytes() == pictures[1]


def test_equal_pictures_are_listed_once(tmp_path, pictures):
    repeated = [pictures[0], *pictures[1:39], pictures[0]]
    (tmp_path / "a.bin").write_bytes(pickle.dumps((repeated, GENUINE), 4))
    pairs = read_bin(tmp_path / "a.bin")
    assert len(pairs.paths) == 39 and pairs.second[19] == pairs.first[0]
    distances = pair_distances(np.arange(39.)[:, None], pairs)
    assert distances.tolist() == [1.0] * 19 + [38.0]


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("call", [(os.system, "touch {}"), (exec, "open({!r}, 'w')"), (np.fromfile, "{}"),
                                  (Path, "{}"), (getattr, os, "system")])
def test_a_pickle_that_asks_for_anything_else_is_refused_and_does_nothing(tmp_path, pictures, protocol, call):
    trace = tmp_path / "trace"
    arguments = [argument.format(str(trace)) if isinstance(argument, str) else argument for argument in call[1:]]
    path = tmp_path / "lfw.bin"
    path.write_bytes(pickle.dumps(([*pictures[:39], Hostile(call[0], *arguments)], GENUINE), protocol)
                     if os not in arguments else b"cos\nsystem\n(S'touch %s'\ntR." % os.fsencode(trace))
    with pytest.raises(UserError, match=r"lfw\.bin is no verification file \(it asks for .*which images do not need"):
        read_bin(path)
    assert not trace.exists()


@pytest.mark.parametrize("content", [
    b"", b"\x80", b"not a pickle\n", b"\x80\x04.", b"PK\x03\x04", jpeg(0), b"cos\n", b"cos\x00\nsystem\n.",
    b"\x80\x02\x8a\xff" + b"\x7f" * 255, "c小\nx\n.".encode(), b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60),
    b"(" * 100_000 + b"."])
def test_what_is_no_pickle_is_a_user_error_of_one_line(tmp_path, content):
    (tmp_path / "lfw.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"^[^\n]*lfw\.bin is no verification file[^\n]*$"):
        read_bin(tmp_path / "lfw.bin")


@pytest.mark.parametrize("writer", ["Python 3, protocol 4", "Python 3, protocol 0", "array, protocol 5", "Python 2"])
def test_a_truncated_file_is_a_user_error_wherever_it_ends(tmp_path, pictures, writer):
    whole = WRITERS[writer](pictures, GENUINE)
    for end in np.linspace(1, len(whole) - 1, 40, dtype=int):
        (tmp_path / "lfw.bin").write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"lfw\.bin"):
            read_bin(tmp_path / "lfw.bin")


@pytest.mark.parametrize("content, words", [
    (lambda pictures: pictures, "no verification file"), (lambda pictures: (pictures,), "no verification file"),
    (lambda pictures: (pictures, GENUINE, []), "no verification file"), (lambda pictures: 7, "no verification file"),
    (lambda pictures: (GENUINE, pictures), "no verification file"), (lambda pictures: {1: 2, 3: 4}, "no verification"),
    (lambda pictures: (pictures, ["yes"] * 20), "no verification file"), (lambda pictures: (b"a", b"b"), "no verif"),
    (lambda pictures: ([picture.hex() for picture in pictures], GENUINE), "no verification file"),
    (lambda pictures: (pictures[:39], GENUINE), "39 images for 20 pairs"), (lambda pictures: ([], []), "0 images"),
    (lambda pictures: (pictures[:38], GENUINE[:19]), "19 pairs do not divide into 10 folds")])
def test_a_pickle_of_another_shape_is_a_user_error(tmp_path, pictures, content, words):
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps(content(pictures), 4))
    with pytest.raises(UserError, match=rf"lfw\.bin.*{words}"):
        read_bin(tmp_path / "lfw.bin")


def test_a_picture_that_does_not_decode_is_named_by_file_and_place(tmp_path, pictures):
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps(([*pictures[:7], b"x", *pictures[8:]], GENUINE), 4))
    pairs = read_bin(tmp_path / "lfw.bin")
    with pytest.raises(UserError, match=r"lfw\.bin, image 7 does not decode"):
        preprocess(pairs.paths[7])


# eval_LFW.py --bin

@pytest.fixture(scope="module")
def sixty(shared):
    """Sixty lines of the official list, ten times three genuine and three impostor pairs, and their pictures."""
    rows = (shared / "lfw" / "pairs.txt").read_text(encoding="utf-8").splitlines()[1:]
    lines, paths = [], []
    for fold in range(10):
        lines += rows[fold * 600:fold * 600 + 3] + rows[fold * 600 + 300:fold * 600 + 303]
    for fields in map(str.split, lines):
        for name, number in (fields[:2], (fields[-2] if len(fields) == 4 else fields[0], fields[-1])):
            paths.append(shared / "lfw" / "images" / name / f"{name}_{int(number):04d}.jpg")
    return lines, paths


def test_eval_of_a_bin_has_the_figures_of_the_folder(call_script, shared, published_weights, sixty, tmp_path):
    lines, paths = sixty
    (tmp_path / "pairs.txt").write_text("\n".join(["10 3", *lines, ""]), encoding="utf-8")
    genuine = [len(line.split()) == 3 for line in lines]
    (tmp_path / "agedb_30.bin").write_bytes(python2(array)([path.read_bytes() for path in paths], genuine))
    common = ("--model-path", published_weights, "--device", "cpu", "--num-workers", 1)
    folder = call_script("eval_LFW.py", *common, "--lfw-dir", shared / "lfw" / "images", "--lfw-pairs", "pairs.txt",
                         "--json", "folder.json")
    found = call_script("eval_LFW.py", *common, "--bin", "agedb_30.bin", "--json", "bin.json",
                        "--mistakes", "mistakes.png", "--png-save-path", "roc.png")
    assert folder.returncode == found.returncode == 0 and found.stderr == "", folder.stderr + found.stderr
    assert f"agedb_30: 60 pairs, {len(set(paths))} images" in found.stdout and "un-aligned" not in found.stdout
    expected, figures = (json.loads((tmp_path / name).read_text("utf-8")) for name in ("folder.json", "bin.json"))
    assert (expected.pop("benchmark"), figures.pop("benchmark")) == ("LFW", "agedb_30")
    assert expected.pop("settings") and figures.pop("settings")["bin"] == "agedb_30.bin"
    assert figures == expected and 0.8 < figures["accuracy"] < 1 and figures["folds"] == 10
    for pattern in (r"^Accuracy: \d.*$", r"^Best_thresholds: .*$", r"^Validation rate: .*$"):
        assert re.search(pattern, found.stdout, re.M)[0] == re.search(pattern, folder.stdout, re.M)[0]
    for name in ("mistakes.png", "roc.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 100


def test_eval_of_a_bad_bin_is_one_line_on_stderr(call_script, published_weights, pictures, tmp_path):
    (tmp_path / "hostile.bin").write_bytes(b"cos\nsystem\n(S'touch trace'\ntR.")
    (tmp_path / "damaged.bin").write_bytes(pickle.dumps(([*pictures[:39], b"no picture"], GENUINE), 2))
    (tmp_path / "folder.bin").mkdir()
    common = ("eval_LFW.py", "--model-path", published_weights, "--device", "cpu", "--bin")
    for name, words in (("hostile.bin", "'os'.'system'"), ("damaged.bin", "image 39 does not decode"),
                        ("folder.bin", "directory"), ("gone.bin", "does not exist")):
        assert_user_error(call_script(*common, name), name, words)
    assert not (tmp_path / "trace").exists()


def test_bin_download_and_align_exclude_each_other(call_script):
    for flags in (("--bin", "x", "--download"), ("--align-from", "x", "--bin", "y"),
                  ("--download", "--align-from", "x")):
        assert_user_error(call_script("eval_LFW.py", *flags), "not allowed with")
    assert_user_error(call_script("eval_LFW.py", "--download", "aligned"), "original", "funneled")
