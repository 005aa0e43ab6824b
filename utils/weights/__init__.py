"""Weight files: read safely, loaded strictly, downloaded if published, exported to ONNX for other programs."""
