"""A picture in, the pixels of one face out: decoded upright, detected, aligned to the template, resized."""
