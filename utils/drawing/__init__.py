"""Faces, verdicts and figures in, pictures out: contact sheets by Pillow, curves by matplotlib."""
