"""predict.py --export: what the file answers, what it says of itself, and when it is not kept."""
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from arcface import Arcface
from nets.arcface import ArcfaceNet
from utils.common.errors import UserError
from utils.common.files import hash_file
from utils.evaluation.thresholds import BY_DEFAULT, Threshold
from utils.faces.images import normalise, preprocess
from utils.weights.checkpoint import save
from utils.weights.export import describe, export


@pytest.fixture(scope="module")
def faces(shared):
    """Five LFW pictures of four people."""
    return [picture for person in ("Abel_Pacheco", "Aaron_Peirsol", "Adam_Scott", "Abdullah_Gul")
            for picture in sorted((shared / "lfw" / "images" / person).glob("*.jpg"))][:5]


@pytest.fixture(scope="module")
def arcface(published_weights):
    return Arcface(model_path=published_weights, cuda=False, threshold=1.167)  # given, so that the file tells it


def random_weights(backbone, faces, path):
    """Random weights with the BatchNorm statistics of these faces, without which deep random networks overflow."""
    torch.manual_seed(0)
    net = ArcfaceNet(backbone=backbone)
    for module in net.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the mean over all batches, of which there is one
    with torch.no_grad():
        net.train()(torch.from_numpy(np.stack([preprocess(face) for face in faces])).permute(0, 3, 1, 2) / 127.5 - 1)
    save(net.state_dict(), path)
    return path


def run_file(path, pictures):
    """What another program does: preprocess as the file's metadata say, and run it. -> embeddings, metadata."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    size, mode = (int(metadata["width"]), int(metadata["height"])), metadata["colour"]
    pixels = np.stack([np.asarray(Image.open(picture).convert(mode).resize(size)) for picture in pictures])
    scale, mean, std = (np.float32(metadata[name]) for name in ("scale", "mean", "std"))
    images = (pixels * scale - mean) / std
    if metadata["layout"] == "NCHW":
        images = images.transpose(0, 3, 1, 2)
    return session.run(["embeddings"], {"images": np.ascontiguousarray(images, np.float32)})[0], metadata


def assert_answers_as(arcface, path, faces):
    """The file gives the predictor's embeddings, in a batch and alone. -> its metadata."""
    expected = arcface.embed(faces)
    assert np.ptp(expected, axis=0).max() > 0.01  # else every cosine is 1
    for batch in (faces, faces[:1]):
        embeddings, metadata = run_file(path, batch)
        assert (embeddings * expected[:len(batch)]).sum(1) == pytest.approx(1, abs=1e-5)
    assert metadata["backbone"] == arcface.net.backbone and metadata["embedding_size"] == str(expected.shape[1])
    assert metadata["weights_sha256"] == hash_file(arcface.model_path) and metadata["embedding_normalised"] == "L2"
    return metadata


def test_the_script_writes_one_file_quietly_under_any_name_and_from_any_folder(
        published_weights, arcface, faces, call_script, tmp_path):
    pytest.importorskip("onnxscript")
    result = call_script("predict.py", "--model-path", published_weights, "--no-cuda", "--no-letterbox-image",
                         "--threshold", 1.25, "--export", "人 脸;.onnx")
    assert result.stderr == "" and len(result.stdout.splitlines()) == 2
    assert "人 脸;.onnx: ONNX Runtime agrees with PyTorch on 6 pictures" in result.stdout
    assert [file.name for file in tmp_path.iterdir()] == ["人 脸;.onnx"]
    metadata = assert_answers_as(arcface, tmp_path / "人 脸;.onnx", faces)
    assert metadata["threshold"] == "1.25" and "letterbox" not in metadata["resize"]
    assert str(ROOT).encode() not in (tmp_path / "人 脸;.onnx").read_bytes()


@pytest.mark.parametrize("backbone", ["mobilenet", "iresnet18"])
def test_an_onnx_file_of_any_backbone_answers_as_the_predictor_does(backbone, faces, tmp_path):
    pytest.importorskip("onnxscript")
    weights = random_weights(backbone, faces, tmp_path / "random.pth")
    arcface = Arcface(model_path=weights, backbone=backbone, cuda=False)
    assert "ONNX Runtime agrees" in export(arcface, tmp_path / "face.onnx")
    metadata = assert_answers_as(arcface, tmp_path / "face.onnx", faces)
    assert "letterbox" in metadata["resize"]
    assert "threshold" not in metadata  # the default is of other weights


def test_the_measured_threshold_is_told_with_the_weights_it_is_of(monkeypatch):
    monkeypatch.chdir(ROOT)
    measured = json.loads(Path("model_data/arcface_mobilefacenet.json").read_text(encoding="utf-8"))["thresholds"]
    assert float(describe(Arcface(cuda=False))["threshold"]) == measured["best accuracy"]


def test_a_pt2_file_answers_as_the_predictor_does_and_says_what_it_takes(arcface, faces, tmp_path):
    path, extra = tmp_path / "face.pt2", {"metadata.json": ""}
    assert "torch.export.load agrees with PyTorch on 6 pictures" in export(arcface, path)
    net = torch.export.load(path, extra_files=extra).module()
    metadata = json.loads(extra["metadata.json"])
    assert metadata["colour"] == "RGB" and metadata["threshold"] == "1.167"
    images = torch.from_numpy(np.stack([preprocess(face) for face in faces])).permute(0, 3, 1, 2) / 127.5 - 1
    for batch in (images, images[:1]):
        embeddings = net(batch).detach().numpy()
        assert (embeddings * arcface.embed(faces)[:len(batch)]).sum(1) == pytest.approx(1, abs=1e-5)
    assert str(ROOT).encode() not in path.read_bytes()


# What is not kept, with a network so small that it exports in a moment.

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

    def __init__(self, folder, answer):
        self.model_path, self.answer = folder / "tiny.pth", answer
        self.model_path.write_bytes(b"weights")

    @torch.no_grad()
    def embed_anything(self, pictures):
        pixels = torch.from_numpy(np.stack([preprocess(picture) for picture in pictures]))
        return self.answer(self.net(normalise(pixels)).numpy())


@pytest.fixture
def tiny(tmp_path):
    """tiny(answer) -> a predictor whose embeddings pass through answer()."""
    return lambda answer=lambda right: right: TinyPredictor(tmp_path, answer)


def assert_not_kept(predictor, path, match):
    """The export raises, and the file that was there stays, alone."""
    path.write_text("kept")
    with pytest.raises(UserError, match=match) as caught:
        export(predictor, path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_text() == "kept"
    assert sorted(file.name for file in path.parent.iterdir()) == sorted([path.name, "tiny.pth"])


@pytest.mark.parametrize("answer", [lambda right: -right, lambda right: right[:, ::-1], lambda right: right[::-1],
                                    lambda right: right * np.nan, lambda right: right * 0])
def test_a_file_that_disagrees_with_pytorch_is_not_kept(tiny, tmp_path, answer):
    assert_not_kept(tiny(answer), tmp_path / "face.pt2", "is not kept: .* cosine")


def test_a_network_whose_embeddings_are_not_of_length_1_is_not_kept(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "normalize", lambda embeddings: 100 * embeddings)
    assert_not_kept(tiny(lambda right: right / np.linalg.norm(right, axis=1, keepdims=True)), tmp_path / "face.pt2",
                    "is not kept")


def test_a_file_that_onnx_runtime_does_not_run_is_not_kept(tiny, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    monkeypatch.setattr("utils.weights.export.to_onnx", lambda *arguments: b"damaged")
    assert_not_kept(tiny(), tmp_path / "face.onnx", "ONNX Runtime does not run it")


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(tiny, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert_not_kept(tiny(), tmp_path / "face.onnx", rf"needs the package {package}: pip install")


def test_without_onnx_runtime_the_file_is_kept_and_said_to_be_unchecked(tiny, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        found = export(tiny(), tmp_path / "face.onnx")
    assert found.startswith("not checked") and "pip install" in found
    embeddings, metadata = run_file(tmp_path / "face.onnx", [ROOT / "img" / "1_001.jpg"])
    assert np.linalg.norm(embeddings) == pytest.approx(1, abs=1e-5) and "threshold" not in metadata


def test_an_exporter_that_fails_is_one_line_with_its_reason(tiny, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: print("noise") or torch.zeros(2) @ torch.zeros(3))
    assert_not_kept(tiny(), tmp_path / "face.pt2", "PyTorch cannot export .*RuntimeError: inconsistent tensor size")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["face", "face.pth", "onnx"])
def test_another_ending_is_a_user_error(tiny, tmp_path, name):
    assert_not_kept(tiny(), tmp_path / name, r"ends in \.onnx or \.pt2")
