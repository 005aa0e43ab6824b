"""predict.py --export: the file's embeddings and metadata, and when it is not kept."""
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, read_json
from PIL import Image

from arcface import Arcface
from utils.common.errors import UserError
from utils.common.files import hash_file
from utils.evaluation.thresholds import BY_DEFAULT, Threshold, Thresholds, save_thresholds
from utils.weights.export import describe_network, export
from utils.weights.onnx_model import OnnxModel


@pytest.fixture(scope="module")
def faces(shared):
    """Five LFW images of four people."""
    return [image for person in ("Abel_Pacheco", "Aaron_Peirsol", "Adam_Scott", "Abdullah_Gul")
            for image in sorted((shared / "lfw" / "images" / person).glob("*.jpg"))][:5]


@pytest.fixture(scope="module")
def arcface(published_weights):
    return Arcface(model_path=published_weights, cuda=False, threshold=1.167)  # given, so that it is in the metadata


def run_file(path, images):
    """Preprocess as the metadata describe, and run the file. Return embeddings and metadata."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    size, mode = (int(metadata["width"]), int(metadata["height"])), metadata["color"]
    pixels = np.stack([np.asarray(Image.open(image).convert(mode).resize(size)) for image in images])
    scale, mean, std = (np.float32(metadata[name]) for name in ("scale", "mean", "std"))
    inputs = (pixels * scale - mean) / std
    if metadata["layout"] == "NCHW":
        inputs = inputs.transpose(0, 3, 1, 2)
    return session.run(["embeddings"], {"images": np.ascontiguousarray(inputs, np.float32)})[0], metadata


def assert_embeds_as(arcface, path, faces):
    """Check that the file gives the predictor's embeddings, in a batch and alone. Return its metadata."""
    expected = arcface.embed(faces)
    assert np.ptp(expected, axis=0).max() > 0.01  # else every cosine is 1
    for batch in (faces, faces[:1]):
        embeddings, metadata = run_file(path, batch)
        assert (embeddings * expected[:len(batch)]).sum(1) == pytest.approx(1, abs=1e-5)
    assert metadata["backbone"] == arcface.net.backbone and metadata["embedding_size"] == str(expected.shape[1])
    assert metadata["weights_sha256"] == hash_file(arcface.model_path) and metadata["embedding_normalised"] == "L2"
    return metadata


def test_the_script_writes_the_network_and_its_thresholds_quietly_under_any_name_and_from_any_folder(
        published_weights, arcface, faces, call_script, tmp_path):
    pytest.importorskip("onnxscript")
    weights = shutil.copy(published_weights, tmp_path / "w.pth")
    save_thresholds(weights, {"thresholds": {"best accuracy": 1.1}, "date": "2026-01-01"})
    (tmp_path / "人 脸;.onnx.json").write_text('{"val": 0.5}')  # of an earlier export
    result = call_script("predict.py", "--model-path", weights, "--device", "cpu", "--bf16", "--no-letterbox-image",
                         "--threshold", 1.25, "--export", "人 脸;.onnx")
    assert result.stderr == "" and len(result.stdout.splitlines()) == 2
    assert "人 脸;.onnx: ONNX Runtime agrees with PyTorch on 6 images" in result.stdout
    assert {file.name for file in tmp_path.iterdir()} == {"w.pth", "w.json", "人 脸;.onnx", "人 脸;.onnx.json"}
    metadata = assert_embeds_as(arcface, tmp_path / "人 脸;.onnx", faces)
    assert metadata["threshold"] == "1.25" and "letterbox" not in metadata["resize"]
    assert str(ROOT).encode() not in (tmp_path / "人 脸;.onnx").read_bytes()
    exported = Arcface(model_path=tmp_path / "人 脸;.onnx", device="cpu")
    assert exported.backbone == "mobilefacenet" and exported.threshold == 1.1 and exported.thresholds.note is None
    assert exported.thresholds.record["date"] == "2026-01-01" and "val" not in exported.thresholds.record
    assert (exported.embed(faces) * arcface.embed(faces)).sum(1) == pytest.approx(1, abs=1e-5)
    with pytest.raises(UserError, match=r"cannot export .*人 脸;\.onnx: it is an ONNX file"):
        export(exported, tmp_path / "again.onnx")


def test_the_measured_threshold_is_in_the_metadata(tiny, monkeypatch):
    assert "threshold" not in describe_network(tiny)  # the default was measured with other weights
    monkeypatch.chdir(ROOT)
    measured = read_json(Path("model_data/arcface_mobilefacenet.json"))["thresholds"]
    assert float(describe_network(Arcface(cuda=False))["threshold"]) == measured["best accuracy"]


# Failed exports, with a small network for speed

class Tiny(torch.nn.Module):
    backbone, embedding_size = "tiny", 8

    def __init__(self):
        super().__init__()
        self.arcface = torch.nn.Sequential(torch.nn.AvgPool2d(28), torch.nn.Flatten(), torch.nn.Linear(48, 8))

    def forward(self, images):
        return torch.nn.functional.normalize(self.arcface(images))


class TinyPredictor:
    input_shape, letterbox_image, threshold, net = [112, 112, 3], True, 1.2, Tiny()
    pair_threshold = Threshold(1.2, BY_DEFAULT)

    def __init__(self, folder):
        self.model_path = folder / "tiny.pth"
        self.model_path.write_bytes(b"weights")
        self.thresholds = Thresholds(self.model_path)


@pytest.fixture
def tiny(tmp_path):
    return TinyPredictor(tmp_path)


def assert_not_kept(predictor, path, match):
    """Check that the export raises UserError and that the previous file stays, with no other beside it."""
    path.write_text("kept")
    with pytest.raises(UserError, match=match) as caught:
        export(predictor, path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_text() == "kept"
    assert sorted(file.name for file in path.parent.iterdir()) == sorted([path.name, "tiny.pth"])


@pytest.mark.parametrize("answer", [lambda right: right.flip(0), lambda right: right * torch.nan])
def test_a_file_that_disagrees_with_pytorch_is_not_kept(tiny, tmp_path, monkeypatch, answer):
    pytest.importorskip("onnxscript")
    forward = OnnxModel.forward
    monkeypatch.setattr(OnnxModel, "forward", lambda self, images: answer(forward(self, images)))
    assert_not_kept(tiny, tmp_path / "face.onnx", "disagrees with PyTorch: .* cosine")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(tiny, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert_not_kept(tiny, tmp_path / "face.onnx", rf"needs the package {package}: pip install")


def test_an_exporter_that_fails_is_one_line_with_its_reason(tiny, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: print("noise") or torch.zeros(2) @ torch.zeros(3))
    assert_not_kept(tiny, tmp_path / "face.onnx", "cannot export .*inconsistent tensor size")
    assert capfd.readouterr() == ("", "")
