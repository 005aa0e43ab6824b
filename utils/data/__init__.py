"""From folders, annotation files and .rec files to augmented batches of images."""
