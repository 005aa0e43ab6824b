"""A gallery of very many pictures: seconds and memory of the first and the second query, without the network.

    python benchmarks/gallery_scale.py
    python benchmarks/gallery_scale.py --people 200000 --folder /fast/disk/people      a million pictures

Makes a folder of empty files, five of a person, and gives them random embeddings; a second process then opens the
gallery and asks for the nearest people, as the second call of predict.py does once it has started.
"""
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from utils.common.errors import SettingsParser, script
from utils.evaluation.gallery import nearest_identities, open_gallery

PICTURES, SIZE = 5, 128


def parse_settings():
    parser = SettingsParser(__doc__)
    parser.add_argument("--people", type=int, default=20_000)
    parser.add_argument("--folder", help="where to make the files, and leave them; None: in a temporary folder")
    parser.add_argument("--query", help="only ask this gallery")
    return parser.parse_args()


def embed(paths, progress=None):
    """Random embeddings in place of the network's, and no remarks."""
    embeddings = np.random.default_rng(len(paths)).normal(size=(len(paths), SIZE)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings, [""] * len(paths), [False] * len(paths)


def megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def query(folder):
    before, start, processor = megabytes(), time.perf_counter(), time.process_time()
    gallery = open_gallery(folder, embed, {})
    opened = time.perf_counter() - start
    nearest_identities(embed([folder])[0][0], gallery, 5)
    print(f"{len(gallery.paths)} pictures, {gallery.embedded} embedded: {time.perf_counter() - start:.2f} s, of which "
          f"opening {opened:.2f} s, {time.process_time() - processor:.2f} s of a core; at most "
          f"{megabytes() - before:.0f} MB more")


@script
def main():
    settings = parse_settings()
    if settings.query:
        query(settings.query)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(settings.folder or temporary)
        for person in range(settings.people):
            (folder / f"person {person:07}").mkdir(parents=True, exist_ok=True)
            for picture in range(PICTURES):
                (folder / f"person {person:07}" / f"{picture}.jpg").touch()
        for _ in range(3):
            subprocess.run([sys.executable, __file__, "--query", str(folder)], check=True)


if __name__ == "__main__":
    main()
