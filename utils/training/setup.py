"""From the settings of train.py to the network, the loss and the Training that it starts with."""
import torch

from nets.arcface import ArcfaceNet
from nets.partial_fc import WHOLE, Shard
from utils.common import distributed
from utils.common.files import locate
from utils.training.distillation import Distillation, Weights, matched_stages, one_stage
from utils.training.engine import Training
from utils.training.interrupt import StopRequest
from utils.training.losses import LabelLoss
from utils.training.optim import LearningRate, LossScale, Margin, MovingAverage, make_optimizer, scale_learning_rate
from utils.weights import checkpoint


def make_net(settings, num_classes, device):
    """-> a network with random weights."""
    torch.manual_seed(settings.seed)
    net = ArcfaceNet(num_classes, settings.backbone, settings.s, settings.m, settings.easy_margin, settings.head,
                     make_shard(settings))
    if settings.sync_bn and device.type == "cuda" and distributed.world_size() > 1:
        net = torch.nn.SyncBatchNorm.convert_sync_batchnorm(net)
    torch.manual_seed(settings.seed + distributed.rank())  # from here on each process has dropout of its own
    return net.to(device, memory_format=memory_format(settings))


def make_shard(settings):
    """-> which part of the head's classes this process has."""
    return Shard(distributed.rank(), distributed.world_size()) if settings.shard_head else WHOLE


def saves_head(settings, classes):
    """-> whether the weights of the epochs hold the head: at 512 dimensions 100,000 people are 205 MB a file."""
    return classes <= 100_000 if settings.save_head is None else settings.save_head


def load_weights(net, settings):
    """Let a new run start from --model-path or --pretrained, where one of them is given."""
    if settings.model_path:
        print(checkpoint.load_for_training(net, settings.model_path))
    elif settings.pretrained:
        print(checkpoint.load_pretrained_backbone(net, locate(f"model_data/{settings.backbone}_backbone_weights.pth")))


def make_objective(net, settings, device):
    """-> the loss to train on: the labels', or that of a student of --teacher."""
    if not settings.teacher:
        return LabelLoss(net)
    teacher = checkpoint.load_embedder(settings.teacher, settings.teacher_backbone)
    teacher = teacher.to(device, memory_format=memory_format(settings))
    stages = (matched_stages if settings.hint_weight or settings.hint_epochs else one_stage)(net, teacher)
    return Distillation(net, stages, Weights(settings.label_weight, settings.distill_weight, settings.hint_weight),
                        settings.teacher_flip)


def memory_format(settings):
    return torch.channels_last if settings.channels_last else torch.contiguous_format


def make_training(net, batches, settings, device):
    """batches: the EpochBatches of the training pictures."""
    steps_per_epoch = -(-len(batches) // settings.accumulate)
    peak, lowest = settings.init_lr, settings.init_lr * settings.min_lr_ratio
    if settings.scale_lr:
        peak, lowest = scale_learning_rate(settings.init_lr, settings.min_lr_ratio,
                                           batches.batch_size * settings.accumulate, settings.optimizer_type)
    settings.effective_lr, settings.effective_min_lr = peak, lowest
    objective = make_objective(net, settings, device)
    learned = [*net.named_parameters(), *objective.maps.named_parameters()]
    own = ["net.head.weight"] if net.head.shard.processes > 1 else []
    return Training(
        net=net, objective=objective, model=distributed.wrap(objective, device, own),
        optimizer=make_optimizer(learned, settings, peak),
        learning_rate=LearningRate(settings.lr_decay_type, peak, lowest, settings.epochs * steps_per_epoch,
                                   steps_per_epoch, settings.warmup_epochs, tuple(settings.milestones)),
        margin=Margin(settings.m, settings.margin_warmup_epochs * steps_per_epoch),
        device=device, seed=settings.seed, accumulate=settings.accumulate, grad_clip=settings.grad_clip,
        autocast_dtype=torch.float16 if settings.fp16 else torch.bfloat16 if settings.bf16 else None,
        scale=LossScale(settings.fp16),
        average=MovingAverage(net, settings.ema) if settings.ema else None, stop=StopRequest(),
        memory_format=memory_format(settings), augmentations=tuple(settings.augment),
        freeze_bn_from=settings.epochs - settings.freeze_bn_epochs,
        hint_steps=round(settings.hint_epochs * steps_per_epoch), checkpoint_every=60 * settings.checkpoint_every,
        sample_rate=settings.sample_rate,
        step=settings.init_epoch * steps_per_epoch, epoch=settings.init_epoch)
