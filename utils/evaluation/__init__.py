"""Faces in, metrics out: embeddings, their distances, and the thresholds and people found by them."""
