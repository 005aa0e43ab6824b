"""last.pt: the state of a run, from which --resume continues."""
from pathlib import Path

from utils.common import distributed
from utils.common.errors import UserError
from utils.weights import checkpoint as weights

NOT_SAVED = {"resume", "force"}  # flags of this start only
# Settings that may differ when a run is resumed: they change where and how it runs, not what it computes.
FREE = {"num_workers", "device", "save_dir", "save_period", "checkpoint_every", "annotation_path", "datasets_path",
        "unlabeled", "shard_head", "compile", "teacher"}
FIXED = {"backbone", "optimizer_type", "batch_size", "accumulate", "classes"}  # the saved state does not fit others
KEYS = {"model", "ema", "optimizer", "loss_scale", "projection", "step", "epoch", "batch", "sums", "rows", "settings"}


def find_checkpoint(resume, save_dir):
    """Return the last.pt that --resume means: a file, a run's folder, or ("") the newest run in save_dir."""
    if resume:
        path = Path(resume)
        return path / "last.pt" if path.is_dir() else path
    found = sorted(Path(save_dir).glob("*/last.pt"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise UserError(f"no run in {save_dir} has a last.pt to resume: give its path, or leave out --resume")
    return found[-1]


def read_checkpoint(path):
    """Return what `save_checkpoint` wrote, its tensors still on the disk. Raises UserError for any other file."""
    content = weights.load(path, "give the last.pt of a run, or start from weights with --model-path", mmap=True)
    if not isinstance(content, dict) or KEYS - content.keys() or "images_sha256" not in content["settings"]:
        raise UserError(f"{path} does not hold the state of a run of this version: start a new run, from weights with "
                        "--model-path")
    return content


def save_checkpoint(state, run, args):
    """Write last.pt. Every rank has to call it; rank 0 writes.

    Raises UserError for weights that are not finite or huge; last.pt stays as it was.
    """
    settings = {name: value for name, value in vars(args).items() if name not in NOT_SAVED}
    content = state.state_dict() | {"rows": run.rows, "settings": settings}
    if distributed.is_main():
        try:
            weights.save(content, run.folder / "last.pt")
        except weights.InvalidWeights as error:
            raise weights.InvalidWeights(f"{error} (step {state.step}): lower --init-lr, or set --grad-clip "
                                         "5") from None


def check_resumed(saved, args):
    """Raise UserError if a setting that changes the result differs from the checkpoint's.

    The hash of the training images is such a setting. --force allows all differences but those of FIXED.
    """
    now = vars(args)
    changed = {name: f"{name} was {saved[name]}, is {now[name]}" for name in saved
               if name not in FREE | NOT_SAVED and name in now and saved[name] != now[name]}
    fixed = FIXED if saved["label_weight"] else FIXED | {"label_weight"}  # no momentum of the head is saved
    message = f"{args.resume}: the resumed run differs: {'; '.join(changed.values())}"
    if changed and (not args.force or fixed & changed.keys()):
        raise UserError(f"{message} (use --force; if {', '.join(sorted(fixed))} differ, start a new run, from its "
                        "best.pth with --model-path)")
    if changed:
        print(message)
