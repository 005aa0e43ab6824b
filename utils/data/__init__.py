"""Folders, annotation lists and .rec files in, batches of faces out: listed, split, shuffled, augmented."""
