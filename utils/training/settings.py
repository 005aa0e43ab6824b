"""Which settings of train.py make sense, alone and together, and what is filled in where one was left open."""
import math
from pathlib import Path

from nets.arcface import DEFAULT_BACKBONE, backbone_name
from utils.common.files import hash_file
from utils.data.augmentation import KINDS
from utils.weights import checkpoint

LEAST = {"epochs": 1, "batch_size": 2, "accumulate": 1, "save_period": 1, "num_workers": 0, "seed": 0, "init_epoch": 0,
         "min_lr_ratio": 0, "momentum": 0, "weight_decay": 0, "grad_clip": 0, "checkpoint_every": 0,
         "margin_warmup_epochs": 0, "freeze_bn_epochs": 0, "distill_weight": 0, "hint_weight": 0,
         "hint_epochs": 0}


def check_settings(settings, parser):
    """Fill in what was left open in the namespace; ends with parser.error() where something makes no sense.

    Raises UserError for weights that are not there or do not tell their backbone.
    """
    check_numbers(settings, parser)
    check_teacher(settings, parser)
    check_choices(settings, parser)
    settings.teacher = settings.teacher and str(checkpoint.find_weights(settings.teacher))
    settings.teacher_sha256 = hash_file(settings.teacher) if Path(settings.teacher).is_file() else None
    settings.model_path = settings.model_path and str(checkpoint.find_weights(settings.model_path))
    if settings.backbone is None:
        settings.backbone = (checkpoint.read_backbone(settings.model_path) if settings.model_path
                             else DEFAULT_BACKBONE)
    try:
        settings.backbone = backbone_name(settings.backbone)
    except ValueError as error:
        parser.error(f"--backbone: {error}")


def check_numbers(settings, parser):
    for name, least in LEAST.items():
        if not getattr(settings, name) >= least:  # so that nan is refused too
            parser.error(f"--{name.replace('_', '-')} must be at least {least}")
    if not settings.init_lr > 0 or (settings.lr_decay_type == "step" and not settings.min_lr_ratio > 0):
        parser.error("--init-lr must be above 0, and --min-lr-ratio too for --lr-decay-type step")
    if any(not epoch > 0 for epoch in settings.milestones) or (settings.warmup_epochs or 0) < 0:
        parser.error("--milestones must be above 0 and --warmup-epochs at least 0")
    if settings.init_epoch >= settings.epochs:
        parser.error(f"--init-epoch {settings.init_epoch} leaves nothing to do before --epochs {settings.epochs}")
    if not 0 <= settings.val_split < 1 or not 0 <= settings.ema < 1:
        parser.error("--val-split and --ema must be at least 0 and below 1")
    if not 0 <= settings.m < math.pi or (settings.s is not None and not 0 < settings.s < math.inf):
        parser.error("--m must be at least 0 and below pi, and --s above 0")
    if not 0 < settings.sample_rate <= 1:
        parser.error("--sample-rate must be above 0 and at most 1")


def check_teacher(settings, parser):
    if settings.label_weight is None:
        settings.label_weight = 0.0 if settings.teacher else 1.0
    if settings.teacher and not (settings.label_weight >= 0 and settings.distill_weight + settings.hint_weight > 0):
        parser.error("--teacher needs --distill-weight or --hint-weight above 0, and --label-weight at least 0")
    if not settings.teacher and (settings.teacher_backbone or settings.distill_weight != 1 or settings.label_weight != 1
                                 or settings.hint_weight or settings.hint_epochs or settings.teacher_flip
                                 or settings.unlabeled):
        parser.error("--teacher-backbone, --teacher-flip, --distill-weight, --hint-weight, --hint-epochs, "
                     "--label-weight and --unlabeled are for a --teacher")
    if settings.teacher and (settings.shard_head or settings.sample_rate < 1):
        parser.error("--shard-head and --sample-rate are for training on labels: leave out --teacher")


def check_choices(settings, parser):
    settings.augment = [kind for word in settings.augment for kind in word.split(",")]
    unknown = [kind for kind in settings.augment if kind not in KINDS]
    if unknown:
        parser.error(f"--augment {unknown[0]!r}: choose among {', '.join(KINDS)}")
    if settings.fp16 and settings.bf16:
        parser.error("--fp16 and --bf16 exclude each other: add --no-fp16 or --no-bf16")
    if settings.eval and settings.lfw_eval is not None:
        parser.error("--eval and --lfw-eval exclude each other: name lfw among those of --eval")
