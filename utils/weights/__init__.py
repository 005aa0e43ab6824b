"""Weight files in and out: read safely, loaded exactly, fetched where published, exported for other programs."""
