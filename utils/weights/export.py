"""Export a network to an ONNX file for other programs, which is compared with PyTorch before it is kept."""
import copy
import io
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import torch

from utils.common.errors import UserError, first_line
from utils.common.files import REPOSITORY, atomic_write
from utils.evaluation.thresholds import BY_DEFAULT, save_thresholds, thresholds_path
from utils.faces.images import normalise, preprocess
from utils.weights.onnx_model import INSTALL, OnnxModel

MIN_COSINE = 0.9999  # between an image's embeddings from the file and from PyTorch; float32 rounding leaves 1 - 1e-7


def export(arcface, path):
    """Write the network of an arcface.Arcface to FILE.onnx, with its preprocessing as metadata, and its thresholds.

    The input `images` is what `normalise` returns, float32 (B, 3, H, W) for any B: insightface's ArcFaceONNX feeds such
    files so. The output `embeddings` is (B, D), L2-normalised. Returns a summary. Raises UserError if the export fails,
    and if the file's embeddings are not PyTorch's; `path` is then as it was.
    """
    if Path(path).suffix.lower() != ".onnx":
        raise UserError(f"cannot export to {path}: give a name that ends in .onnx")
    if isinstance(arcface.net, OnnxModel):
        raise UserError(f"cannot export {arcface.model_path}: it is an ONNX file")
    images = sorted((REPOSITORY / "img").glob("*.jpg"))
    inputs = np.stack([preprocess(image, arcface.input_shape, arcface.letterbox_image) for image in images])
    inputs = normalise(torch.from_numpy(inputs)).contiguous()
    try:
        with atomic_write(path) as temporary:
            net = copy.deepcopy(arcface.net).cpu().to(memory_format=torch.contiguous_format)
            temporary.write_bytes(to_onnx(net, inputs, describe_network(arcface)))
            with torch.inference_mode():
                cosine = (OnnxModel(temporary)(inputs).double() * net(inputs)).sum(1).min().item()
            if not cosine >= MIN_COSINE:  # also if it is NaN
                raise UserError(f"{path}: ONNX Runtime disagrees with PyTorch: an image has cosine {cosine:.7f}")
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise UserError(f"exporting to {path} needs the package {error.name}: {INSTALL}") from None
    except Exception as error:  # mostly an onnxscript of another age than torch, which may raise anything
        raise UserError(f"cannot export to {path} ({first_line(error)}): {INSTALL} --upgrade") from error
    thresholds_path(path).unlink(missing_ok=True)  # of an earlier export
    if arcface.thresholds.record:
        save_thresholds(path, arcface.thresholds.record)
    return f"ONNX Runtime agrees with PyTorch on {len(images)} images, cosine {cosine:.7f} or more"


def describe_network(arcface):
    """Return {name: text}: what a program needs to feed the network and to judge its embeddings."""
    height, width = arcface.input_shape[:2]
    metadata = {
        "backbone": arcface.net.backbone,
        "alignment": "face aligned to the ArcFace 112x112 template",
        "height": height,
        "width": width,
        "resize": f"bicubic, {'letterbox with gray 128' if arcface.letterbox_image else 'stretched'}",
        "color": "RGB",
        "layout": "NCHW",
        "scale": 1 / 255,  # (x * scale - mean) / std
        "mean": 0.5,
        "std": 0.5,
        "embedding_size": arcface.net.embedding_size,
        "embedding_normalised": "L2",
        # The same person below this L2 distance; the default was measured with other weights.
        "threshold": None if arcface.pair_threshold.meaning == BY_DEFAULT else arcface.threshold,
        "weights": Path(arcface.model_path).name,
        "weights_sha256": arcface.thresholds.weights_sha256,
    }
    return {name: str(value) for name, value in metadata.items() if value is not None}


def to_onnx(net, images, metadata):
    """Return the bytes of an ONNX file with its weights inside."""
    import onnx
    import onnxruntime  # noqa: F401  the check needs it
    import onnxscript  # noqa: F401  torch's exporter needs it
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # it prints a lot
        warnings.simplefilter("ignore")
        model = torch.onnx.export(
            net, (images,), dynamo=True, verbose=False, dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=["images"], output_names=["embeddings"],
            opset_version=18,  # the oldest that the exporter writes itself: what reads newer ones reads it too
        ).model_proto
    for part in (model.graph, *model.graph.node):  # how it was made, with this machine's paths
        part.ClearField("metadata_props")
    onnx.helper.set_model_props(model, metadata)
    return model.SerializeToString()
