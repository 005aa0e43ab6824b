"""insightface's verification files, in the encodings of all known writers, and eval_LFW.py --bin."""
import io
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from conftest import Calls, assert_user_error, is_png, jpeg, read_json, write_rows
from PIL import Image

from utils.common.errors import UserError
from utils.evaluation.pairs import read_bin, read_pairs
from utils.faces.images import preprocess


@pytest.fixture(scope="module")
def images():
    """Forty small JPEG files, for ten folds of a genuine and an impostor pair."""
    return [jpeg(seed) for seed in range(40)]


GENUINE = [True, False] * 10


# Verification files in the encodings of all known writers

def python3(protocol, flags=list):
    return lambda images, genuine: pickle.dumps((images, flags(genuine)), protocol)


def arrays(protocol, shape=(-1,)):
    """cv2.imencode returns an array, of shape (N, 1) in older releases."""
    return lambda images, genuine: pickle.dumps(
        ([np.frombuffer(image, np.uint8).copy().reshape(shape) for image in images], genuine), protocol)


def old_numpy(images, genuine):
    """With the module names of numpy 1."""
    return arrays(3, (-1, 1))(images, genuine).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def python2(items):
    """Opcodes of cPickle's protocol 2: PROTO, EMPTY_LIST, (items, APPENDS), booleans, TUPLE2, STOP."""
    def write(images, genuine):
        return b"".join([b"\x80\x02", b"]q\x01(", *map(items, images), b"e", b"]q\x02(",
                         *(b"\x88" if flag else b"\x89" for flag in genuine), b"e", b"\x86q\x03."])
    return write


def string(image):
    return b"T" + struct.pack("<i", len(image)) + image  # BINSTRING, Python 2's str


def array(image):
    """numpy.core.multiarray._reconstruct(numpy.ndarray, (0,), "b"), then its state with dtype("u1", 0, 1)."""
    dtype = (b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\x00tb")
    return (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01"
            + b"J" + struct.pack("<i", len(image)) + b"K\x01\x86" + dtype + b"\x89" + string(image) + b"tb")


WRITERS = {
    **{f"Python 3, protocol {protocol}": python3(protocol) for protocol in range(6)},
    **{f"array, protocol {protocol}": arrays(protocol) for protocol in (2, 3, 4, 5)},
    "array (N, 1), protocol 5": arrays(5, (-1, 1)), "array, numpy 1": old_numpy,
    "Python 2": python2(string), "array, Python 2": python2(array),
    **{f"numpy's {name}, protocol {protocol}": python3(protocol, make) for protocol in (0, 2, 5) for name, make in (
        ("booleans", np.array), ("big-endian numbers", lambda flags: np.array(flags, ">i8")),
        ("list of booleans", lambda flags: list(np.array(flags))), ("floats", np.float32))},
    "ints and tuples": lambda images, genuine: pickle.dumps([tuple(images), [int(flag) for flag in genuine]], 4)}


@pytest.mark.parametrize("writer", WRITERS)
def test_images_and_pairs_are_read_from_files_of_all_writers(tmp_path, images, writer):
    path = tmp_path / "小 cfp;fp.bin"
    path.write_bytes(WRITERS[writer](images, GENUINE))
    pairs = read_bin(path)
    assert pairs.genuine.tolist() == GENUINE and pairs.genuine.dtype == bool
    assert (pairs.folds, pairs.name) == (10, "小 cfp;fp")
    for side, first in ((pairs.first, 0), (pairs.second, 1)):
        assert [pairs.paths[place].getvalue() for place in side] == images[first::2]
    expected = np.asarray(Image.open(io.BytesIO(images[3])))
    assert (preprocess(pairs.paths[pairs.second[1]], (8, 8)) == expected).all()


def test_equal_images_are_listed_once(tmp_path, images):
    repeated = [images[0], *images[1:39], images[0]]
    (tmp_path / "a.bin").write_bytes(pickle.dumps((repeated, GENUINE), 4))
    pairs = read_bin(tmp_path / "a.bin")
    assert len(pairs.paths) == 39 and pairs.second[19] == pairs.first[0]


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("call", [(os.system, "touch {}"), (exec, "open({!r}, 'w')"), (np.fromfile, "{}"),
                                  (Path, "{}"), (getattr, os, "system")])
def test_a_pickle_that_asks_for_anything_else_is_rejected_and_runs_nothing(tmp_path, images, protocol, call):
    trace = tmp_path / "trace"
    arguments = [argument.format(str(trace)) if isinstance(argument, str) else argument for argument in call[1:]]
    path = tmp_path / "lfw.bin"
    path.write_bytes(pickle.dumps(([*images[:39], Calls(call[0], *arguments)], GENUINE), protocol)
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


@pytest.mark.parametrize("content, words", [
    (lambda images: images, "no verification file"), (lambda images: 7, "no verification file"),
    (lambda images: (GENUINE, images), "no verification file"), (lambda images: (b"a", b"b"), "no verification file"),
    (lambda images: (images[:39], GENUINE), "39 images for 20 pairs"), (lambda images: ([], []), "0 images")])
def test_a_pickle_of_another_shape_is_a_user_error(tmp_path, images, content, words):
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps(content(images), 4))
    with pytest.raises(UserError, match=rf"lfw\.bin.*{words}"):
        read_bin(tmp_path / "lfw.bin")


# eval_LFW.py --bin

def test_eval_of_a_bin_has_the_metrics_of_the_folder(call_script, shared, published_weights, tmp_path):
    rows = (shared / "lfw" / "pairs.txt").read_text(encoding="utf-8").splitlines()[1:]
    pairs = read_pairs(write_rows(tmp_path / "lfw_pair.txt", ["10 1", *rows[::300]]), shared / "lfw" / "images")
    content = [pairs.paths[index].read_bytes() for pair in zip(pairs.first, pairs.second) for index in pair]
    (tmp_path / "agedb_30.bin").write_bytes(python2(array)(content, pairs.genuine))
    common = ("eval_LFW.py", "--model-path", published_weights, "--device", "cpu", "--num-workers", 1)
    folder = call_script(*common, "--lfw-dir", shared / "lfw" / "images", "--lfw-pairs", "lfw_pair.txt",
                         "--json", "folder.json")
    found = call_script(*common, "--bin", "agedb_30.bin", "--json", "bin.json", "--mistakes", "mistakes.png")
    assert folder.returncode == found.returncode == 0 and found.stderr == "", folder.stderr + found.stderr
    assert f"agedb_30: 20 pairs in 10 folds, {len(pairs.paths)} images" in found.stdout
    expected, metrics = (read_json(tmp_path / name) for name in ("folder.json", "bin.json"))
    assert (expected.pop("benchmark"), metrics.pop("benchmark")) == ("LFW", "agedb_30")
    assert expected.pop("settings") and metrics.pop("settings")["bin"] == "agedb_30.bin"
    assert metrics == expected and 0.8 < metrics["accuracy"] < 1
    assert is_png(tmp_path / "mistakes.png")


@pytest.mark.parametrize("name, words", [("damaged.bin", "image 39 does not decode"), ("gone.bin", "No such file")])
def test_eval_of_an_invalid_bin_is_one_line_on_stderr(call_script, published_weights, images, tmp_path, name, words):
    (tmp_path / "damaged.bin").write_bytes(pickle.dumps(([*images[:39], b"no image"], GENUINE), 2))
    assert_user_error(call_script("eval_LFW.py", "--model-path", published_weights, "--device", "cpu", "--bin", name),
                      name, words)
