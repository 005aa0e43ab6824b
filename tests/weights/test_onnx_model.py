"""utils/weights/onnx_model.py: ONNX files of other programs, made on the spot."""
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_user_error

from utils.common.errors import UserError
from utils.weights.checkpoint import load_embedder
from utils.weights.onnx_model import OnnxModel

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
RNG = np.random.default_rng(0)
WEIGHT, BIAS = RNG.normal(0, 0.01, (3 * 112 * 112, 8)).astype(np.float32), RNG.normal(0, 1, 8).astype(np.float32)


def write_model(path, shape=("batch", 3, 112, 112), with_pixels=False):
    """Write a network of one layer; with_pixels: it takes 0 to 255, and first scales that by Sub and Mul."""
    helper = onnx.helper
    nodes = [helper.make_node("Identity", ["quantized"], ["weight"])]  # on the weights, as of SFace
    tensors = {"quantized": WEIGHT, "bias": BIAS}
    if with_pixels:
        tensors |= {"mean": np.float32([127.5]), "factor": np.float32([1 / 127.5])}
        nodes += [helper.make_node("Sub", ["data", "mean"], ["centred"]),
                  helper.make_node("Mul", ["centred", "factor"], ["scaled"])]
    nodes += [helper.make_node("Flatten", ["scaled" if with_pixels else "data"], ["flat"]),
              helper.make_node("MatMul", ["flat", "weight"], ["product"]),
              helper.make_node("Add", ["product", "bias"], ["out"])]
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("data", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [shape[0], 8])],
        [onnx.numpy_helper.from_array(value, name) for name, value in tensors.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


@pytest.mark.parametrize("with_pixels", [True, False])
@pytest.mark.parametrize("batch", ["batch", 1])
def test_both_kinds_of_input_and_a_batch_of_1_embed_alike(tmp_path, with_pixels, batch):
    net = OnnxModel(write_model(tmp_path / "net.onnx", (batch, 3, 112, 112), with_pixels))
    images = torch.rand(3, 3, 112, 112) * 2 - 1
    expected = torch.nn.functional.normalize(images.flatten(1) @ torch.from_numpy(WEIGHT) + torch.from_numpy(BIAS))
    assert net.embedding_size == 8 and torch.allclose(net(images), expected, atol=1e-5)


def test_the_scripts_take_it_and_keep_thresholds_beside_it(call_script, tiny_lfw, tmp_path):
    flags = "--model-path", write_model(tmp_path / "net.onnx", with_pixels=True), "--device", "cpu"
    result = call_script("eval_LFW.py", *flags, *tiny_lfw, "--save-threshold")
    assert result.returncode == 0 and "net.onnx (ONNX) on cpu" in result.stdout, result.stderr
    assert (tmp_path / "net.onnx.json").is_file()
    assert_user_error(call_script("eval_LFW.py", *flags, *tiny_lfw, "--input-shape", 96, 96), "112x112")
    assert_user_error(call_script("eval_LFW.py", *flags, *tiny_lfw, "--bf16"), "net.onnx", "--bf16")
    result = call_script("predict.py", *flags, ROOT / "img" / "1_001.jpg", ROOT / "img" / "1_002.jpg", "--no-show",
                         "--align", "no")
    assert result.returncode == 0 and "Distance: " in result.stdout, result.stderr


@pytest.mark.parametrize("write", [
    lambda path: path.write_bytes(b"not ONNX"), lambda path: write_model(path, ("batch", 1, 112, 112)),
    lambda path: write_model(path, (4, 3, 112, 112)), lambda path: write_model(path, ("batch", 37632))],
    ids=["text", "gray", "fixed batch", "no image"])
def test_a_file_that_is_no_face_network_is_one_line(tmp_path, capfd, write):
    write(tmp_path / "odd.onnx")
    with pytest.raises(UserError, match=r"odd\.onnx is no face network") as caught:
        load_embedder(tmp_path / "odd.onnx")
    assert "\n" not in str(caught.value) and capfd.readouterr() == ("", "")


def test_what_is_missing_or_superfluous_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"gone\.onnx does not exist"):
        OnnxModel(tmp_path / "gone.onnx")
    path = write_model(tmp_path / "net.onnx")
    with pytest.raises(UserError, match="leave out --backbone"):
        load_embedder(path, "iresnet50")
    for package in ("onnx", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(UserError, match=f"needs the package {package}: pip install"):
                OnnxModel(path)
