"""Face networks of any program as ONNX files, run by ONNX Runtime."""
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from utils.common.errors import UserError, first_line

INSTALL = "pip install -r requirements-export.txt"


class OnnxModel(nn.Module):
    """An ONNX file that embeds faces as an ArcfaceNet in eval mode does. It has no parameters.

    Our own exports are recognised by their metadata. Other files are fed by insightface's rule (ArcFaceONNX): RGB from
    0 to 255 if the graph begins with Sub and Mul, else from -1 to 1.
    """

    def __init__(self, path):
        """Raises UserError for a missing package, and for a file that is no such network."""
        super().__init__()
        if not Path(path).is_file():
            raise UserError(f"{path} does not exist: give the path of an .onnx file")
        try:
            import onnx
            import onnxruntime
        except ModuleNotFoundError as error:
            raise UserError(f"{path} needs the package {error.name}: {INSTALL}") from None
        self.path = path
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # only what ends the process
        try:
            graph = onnx.load(path, load_external_data=False).graph
            self.session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
            (self.input,), (_,) = self.session.get_inputs(), self.session.get_outputs()
            self.batch, channels, *self.size = self.input.shape
            metadata = self.session.get_modelmeta().custom_metadata_map
            self.backbone = metadata.get("backbone", "ONNX")
            self.takes_pixels = "weights_sha256" not in metadata and begins_with_sub_and_mul(graph, self.input.name)
            height, width = (side if isinstance(side, int) else 112 for side in self.size)
            _, self.embedding_size = self(torch.zeros(1, channels, height, width)).shape
        except Exception as error:  # ONNX Runtime's own kinds, and those of unpacking what is no face network
            raise UserError(f"{path} is no face network (one input of (batch, 3, height, width), for a batch of any "
                            f"size or 1, and one output of (batch, size)): {first_line(error)}") from None

    def to(self, device):
        """Run on CUDA from now on if that is the device and ONNX Runtime has it. Images may be on any device."""
        import onnxruntime
        if torch.device(device).type == "cuda":
            if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
                self.session.set_providers(["CUDAExecutionProvider", "CPUExecutionProvider"])
            else:
                print(f"{self.path} runs on the CPU: this ONNX Runtime has no CUDA (pip install onnxruntime-gpu)")
        return self

    def forward(self, images):
        """Return the L2-normalised embeddings (B, D) of float32 images (B, 3, H, W) from -1 to 1, on their device."""
        if any(isinstance(side, int) and side != given for side, given in zip(self.size, images.shape[2:])):
            raise UserError(f"{self.path} takes images of {'x'.join(map(str, self.size))} pixels, not "
                            f"{'x'.join(map(str, images.shape[2:]))}: use another model")
        if torch.is_autocast_enabled(images.device.type):
            raise UserError(f"{self.path} computes in the precision it was exported in: leave out --bf16")
        pixels = (images.float() + 1) * 127.5 if self.takes_pixels else images.float()
        parts = pixels.split(1 if self.batch == 1 else len(pixels))
        embeddings = [self.session.run(None, {self.input.name: part.cpu().numpy()})[0] for part in parts]
        return F.normalize(torch.from_numpy(np.concatenate(embeddings)).to(images.device))


def begins_with_sub_and_mul(graph, image):
    """Return whether both are among the first 8 nodes that the image passes through."""
    reached, kinds = {image}, []
    for node in graph.node:  # sorted so that each comes after its inputs
        if reached.intersection(node.input):
            reached.update(node.output)
            kinds.append(node.op_type)
    return {"Sub", "Mul"} <= set(kinds[:8])
