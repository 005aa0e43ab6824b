"""An image in, the crop of one face out: decoded upright, detected, aligned to the template, resized."""
