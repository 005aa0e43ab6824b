"""A network as one file for other programs, ONNX or PyTorch's .pt2, checked before it is kept."""
import copy
import io
import json
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import torch

from utils.common.errors import UserError
from utils.common.files import REPOSITORY, atomic_write, hash_file
from utils.evaluation.thresholds import BY_DEFAULT
from utils.faces.images import normalise, preprocess

LEAST_COSINE = 0.9999  # of a picture's embedding from the file and from PyTorch; float32 rounding leaves 1 - 1e-7
PICTURES = REPOSITORY / "img"
PACKAGES = "pip install -r requirements-export.txt"
UPDATE = f"bring the packages up to date, {PACKAGES} --upgrade"


def export(arcface, path):
    """Write the network of an arcface.Arcface with its preprocessing as metadata. -> what the check found, in words.

    path: FILE.onnx (metadata_props) or FILE.pt2 (torch.export, metadata.json among its extra files).
    The file's input `images` is what `normalise` makes, float32 (B, 3, H, W) for any B, and not pixels: that is what
    insightface's ArcFaceONNX feeds a file of this kind. Its output `embeddings` is (B, D), of length 1.
    Raises UserError for another ending, a missing package, and where the file's embeddings are not PyTorch's;
    `path` is then as it was.
    """
    formats = {".onnx": (to_onnx, "ONNX Runtime", run_onnx), ".pt2": (to_pt2, "torch.export.load", run_pt2)}
    if (ending := Path(path).suffix.lower()) not in formats:
        raise UserError(f"cannot export to {path}: give a name that ends in {' or '.join(formats)}")
    convert, runner, run = formats[ending]
    images, expected = embed_samples(arcface)
    with exporting_to(path):
        net = copy.deepcopy(arcface.net).cpu().to(memory_format=torch.contiguous_format)
        content = convert(net, images, describe(arcface))
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
        try:
            cosine = least_cosine(run(temporary, [images[:1], images[1:]]), expected)
        except ModuleNotFoundError as error:
            return f"not checked against PyTorch, which takes the package {error.name}: {PACKAGES}"
        except Exception as error:  # the runner's own kinds
            raise UserError(f"{path} is not kept: {runner} does not run it ({first_line(error)}): {UPDATE}") from error
        if not cosine >= LEAST_COSINE:  # so also where it is NaN
            raise UserError(f"{path} is not kept: by {runner} and by PyTorch a picture's embeddings have cosine "
                            f"{cosine:.7f}, {LEAST_COSINE} or more is expected: {UPDATE}")
    return f"{runner} agrees with PyTorch on {len(images)} pictures, cosine {cosine:.7f} or more"


def embed_samples(arcface):
    """The repository's pictures -> the network's input, float32 (N, 3, H, W), and the predictor's embeddings (N, D)."""
    pictures = sorted(PICTURES.glob("*.jpg"))
    if not pictures:
        raise UserError(f"{PICTURES} holds no .jpg to check the export with: put the repository's pictures back")
    pixels = [preprocess(picture, arcface.input_shape, arcface.letterbox_image) for picture in pictures]
    as_they_are = arcface.embed_anything(pictures)
    return normalise(torch.from_numpy(np.stack(pixels))).contiguous(), as_they_are


def describe(arcface):
    """-> {name: text}: all that a program needs to feed the network and to judge by what it answers."""
    height, width = arcface.input_shape[:2]
    metadata = {
        "backbone": arcface.net.backbone,
        "alignment": "face aligned to the ArcFace 112x112 template",
        "height": height,
        "width": width,
        "resize": f"bicubic, {'letterbox with grey 128' if arcface.letterbox_image else 'stretched'}",
        "colour": "RGB",
        "layout": "NCHW",
        "scale": 1 / 255,  # (x * scale - mean) / std
        "mean": 0.5,
        "std": 0.5,
        "embedding_size": arcface.net.embedding_size,
        "embedding_normalised": "L2",
        # One person below this L2 distance; the default was measured with other weights.
        "threshold": None if arcface.pair_threshold.meaning == BY_DEFAULT else arcface.threshold,
        "weights": Path(arcface.model_path).name,
        "weights_sha256": hash_file(arcface.model_path),
    }
    return {name: str(value) for name, value in metadata.items() if value is not None}


@contextmanager
def exporting_to(path):
    """Keep the exporter's chatter from the user, and make its failure one line."""
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except ModuleNotFoundError as error:
        raise UserError(f"exporting to {path} needs the package {error.name}: {PACKAGES}") from None
    except Exception as error:  # mostly an onnxscript of another age than torch, which may raise anything
        raise UserError(f"PyTorch cannot export to {path} ({first_line(error)}): {UPDATE}") from error


def first_line(error):
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]


def to_onnx(net, images, metadata):
    """-> the bytes of an ONNX file with its weights inside."""
    import onnx
    import onnxscript  # noqa: F401  torch's exporter is made of it, and says less clearly when it is missing
    program = torch.onnx.export(
        net, (images,), dynamo=True, verbose=False, dynamic_shapes=any_batch(),
        input_names=["images"], output_names=["embeddings"],
        opset_version=18)  # the oldest that the exporter writes itself: what reads newer ones reads it too
    model = program.model_proto
    for part in (model.graph, *model.graph.node):  # how it was made, with this machine's paths
        part.ClearField("metadata_props")
    onnx.helper.set_model_props(model, metadata)
    return model.SerializeToString()


def to_pt2(net, images, metadata):
    """-> the bytes of a torch.export file."""
    program = torch.export.export(net, (images,), dynamic_shapes=any_batch())
    for node in program.graph.nodes:  # it names this machine's paths
        node.meta.pop("stack_trace", None)
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={"metadata.json": json.dumps(metadata, indent=2)})
    return content.getvalue()


def any_batch():
    return ({0: torch.export.Dim("batch", min=1)},)


def run_onnx(path, batches):
    """-> the embeddings of each batch."""
    import onnxruntime
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [session.run(None, {"images": images.numpy()})[0] for images in batches]


@torch.no_grad()
def run_pt2(path, batches):
    """-> the embeddings of each batch."""
    with open(path, "rb") as file:
        net = torch.export.load(file).module()
    return [net(images).numpy() for images in batches]


def least_cosine(batches, expected):
    """Embeddings of several batches, and those expected, (N, D) of length 1 -> the least cosine of a picture's two.

    0 where an embedding of the batches is not of length 1 within 1e-4.
    """
    found = np.concatenate(batches).astype(np.float64)
    if not np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-4):
        return 0.0
    return (found * expected).sum(1).min()
