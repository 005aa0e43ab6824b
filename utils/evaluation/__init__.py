"""Faces in, figures out: embeddings, their distances, and the thresholds and people found by them."""
