"""Time and memory of the first and later queries of a very large gallery, without the network.

    python benchmarks/gallery_scale.py
    python benchmarks/gallery_scale.py --people 200000 --folder /fast/disk/people      a million images

Makes a folder of empty files, five for each person, with random embeddings. Each query is a process of its own, which
opens the gallery and searches the nearest people, as predict.py does.
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

IMAGES_PER_PERSON, DIMENSIONS = 5, 128


def embed(paths, progress=None):
    """Take the place of the network: random embeddings, without remarks."""
    embeddings = np.random.default_rng(len(paths)).normal(size=(len(paths), DIMENSIONS)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings, [""] * len(paths), [False] * len(paths)


def query(folder):
    memory, start, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter(), time.process_time()
    gallery = open_gallery(folder, embed, {})
    opened = time.perf_counter() - start
    nearest_identities(embed([folder])[0][0], gallery, 5)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    print(f"{len(gallery.paths)} images, {gallery.embedded} embedded: {time.perf_counter() - start:.2f} s "
          f"({opened:.2f} s to open, {time.process_time() - cpu:.2f} s CPU time), {memory / 1024:.0f} MB more memory")


@script
def main():
    parser = SettingsParser(__doc__)
    parser.add_argument("--people", type=int, default=20_000)
    parser.add_argument("--folder", help="make the files here and leave them (default: a temporary folder)")
    parser.add_argument("--query", metavar="FOLDER", help="only query this gallery")
    args = parser.parse_args()
    if args.query:
        query(args.query)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        for person in range(args.people):
            (folder / f"person {person:07}").mkdir(parents=True, exist_ok=True)
            for number in range(IMAGES_PER_PERSON):
                (folder / f"person {person:07}" / f"{number}.jpg").touch()
        for _ in range(3):
            subprocess.run([sys.executable, __file__, "--query", str(folder)], check=True)


if __name__ == "__main__":
    main()
