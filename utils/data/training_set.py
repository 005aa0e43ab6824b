"""The pictures to train on, wherever they are: in a list of files, in insightface's .rec files, in a folder."""
import hashlib
from typing import NamedTuple

import torch

from nets.head import NOBODY
from utils.common.download import hash_file
from utils.data.annotation import check_there, check_trainable, read_annotation, read_names
from utils.data.records import holds_records, read_records_of
from utils.data.unlabelled import Joined, read_unlabelled


class TrainingSet(NamedTuple):
    pictures: object      # PackedPaths, Records or Joined
    labels: torch.Tensor  # int32 (N,), 0..C-1; NOBODY for pictures without a label, which are the last
    names: list           # of the C people
    sha256: str           # tells this set from others


def read_training_set(settings):
    """What --rec or --annotation-path, and --unlabelled, name -> TrainingSet. Prints what is left out.

    Raises UserError for a set that does not read, that is too small, or whose pictures have moved.
    """
    labelled = read_labelled(settings)
    if not settings.unlabelled:
        return labelled
    pictures, sha256, lines = read_unlabelled(settings.unlabelled)
    print("\n".join([f"{settings.unlabelled}: {len(pictures)} pictures without labels", *lines]))
    nobody = torch.full((len(pictures),), NOBODY, dtype=torch.int32)
    return TrainingSet(Joined(labelled.pictures, pictures), torch.cat([labelled.labels, nobody]), labelled.names,
                       hashlib.sha256((labelled.sha256 + sha256).encode()).hexdigest())


def read_labelled(settings):
    """What --rec or --annotation-path names -> TrainingSet."""
    folder = settings.rec or (settings.annotation_path if holds_records(settings.annotation_path) else None)
    if folder:
        pictures, labels, skipped = read_records_of(folder)
        for record, reason in skipped:
            print(f"skipped {record}: {reason}")
        check_trainable(labels, folder)
        return TrainingSet(pictures, labels, [str(label) for label in range(int(labels.max()) + 1)],
                           pictures.sha256(labels))
    path = settings.annotation_path
    pictures, labels = read_annotation(path, settings.datasets_path)
    check_trainable(labels, path)
    check_there(pictures, path, settings.max_bad_pictures)
    return TrainingSet(pictures, labels, read_names(path, int(labels.max()) + 1), hash_file(path))
