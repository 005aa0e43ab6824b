"""TrainState: everything that a training step reads and changes, and what last.pt holds of it."""
import math
import shutil
import sys
from collections import Counter

import torch
from torch import nn

from nets.arcface import BACKBONES, ArcfaceNet
from nets.partial_fc import UNSHARDED, Shard
from utils.common import distributed
from utils.common.device import describe_device
from utils.common.errors import UserError, first_line
from utils.common.files import locate
from utils.training import optim
from utils.weights import checkpoint as weights

MEMORY_FORMAT = torch.channels_last  # of networks and images: faster on CPUs and on tensor cores
# A run of so many images, over all epochs, is faster compiled on a CPU. This takes up to 50 s on 2 cores. MobileFaceNet
# then goes from 47 to 70 img/s (in bfloat16 from 58 to 127), iResNet-50 in bfloat16 from 9.7 to 10.5, and MobileNet
# from 37 to 34 (58 to 56). Other iResNets are assumed to be like the 50. On CUDA it is a choice.
COMPILE_FROM_IMAGES = 10_000


def make_net(args, num_classes, device):
    """Return the network to train: with random weights, or from --model-path or --pretrained.

    The weights of a resumed run come from its last.pt.
    """
    torch.manual_seed(args.seed)
    shard = Shard(distributed.rank(), distributed.world_size()) if args.shard_head else UNSHARDED
    net = ArcfaceNet(num_classes, args.backbone, m=args.m, head=args.head, shard=shard)
    if args.sync_bn and distributed.world_size() > 1:
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    if args.model_path and args.resume is None:
        print(weights.load_for_training(net, args.model_path))
    elif args.pretrained and args.resume is None:
        print(weights.load_pretrained_backbone(net, locate(f"model_data/{args.backbone}_backbone_weights.pth")))
    return net.to(device, memory_format=MEMORY_FORMAT)


class TrainState:
    """What changes during a run. net: an ArcfaceNet. loss_fn: its LabelLoss. batches: the EpochBatches to train on."""

    def __init__(self, args, net, loss_fn, batches, device):
        steps_per_epoch = math.ceil(len(batches) / args.accumulate)
        images = batches.batch_size * min(args.accumulate, len(batches))  # of a step
        peak = optim.scale_learning_rate(args.init_lr, images, args.optimizer_type) if args.scale_lr else args.init_lr
        self.net, self.loss_fn, self.device = net, loss_fn, device
        # Each rank has its own rows of a sharded head; with --label-weight 0 the head has no gradient.
        ignored = ["net.head.weight"] if args.shard_head or not args.label_weight else []
        self.wrapped_loss = distributed.wrap(loss_fn, ignored)
        self.optimizer = optim.make_optimizer(net, args, peak)
        self.learning_rate = optim.LearningRate(
            args.lr_decay_type, peak, peak * args.min_lr_ratio, args.epochs * steps_per_epoch, steps_per_epoch,
            args.warmup_epochs, tuple(args.milestones))
        self.margin = optim.Margin(args.m, args.margin_warmup_epochs * steps_per_epoch)
        self.loss_scale = optim.LossScale(args.fp16)
        self.ema = optim.MovingAverage(net, args.ema)
        self.autocast_dtype = torch.float16 if args.fp16 else torch.bfloat16 if args.bf16 else None
        self.step = args.init_epoch * steps_per_epoch  # optimizer steps taken since the start of the run
        self.epoch, self.batch = args.init_epoch, 0    # the current epoch, from 0, and its batches so far
        self.sums = new_sums()                         # over the current epoch, of this rank

    def autocast(self):
        return torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def set_training_mode(self, freeze_bn):
        """Set training mode. freeze_bn: keep BatchNorm in eval mode, with the running statistics of rank 0."""
        self.wrapped_loss.train()
        if freeze_bn:
            distributed.copy_buffers_of_main(self.net)
            for module in self.net.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def epoch_metrics(self):
        """Return the epoch's means for log.csv, over all ranks. Accuracy is without the margin, of labeled images."""
        sums = dict(zip(self.sums, distributed.reduce(self.sums.values())))
        return {"train_loss": sums["loss"] / sums["images"],
                "train_accuracy": sums["correct"] / (sums["labeled"] or math.nan),
                "images_per_second": sums["images"] / sums["seconds"], "data_wait": sums["data_wait"] / sums["seconds"]}

    def state_dict(self):
        """Return the state as plain types and tensors. Every rank has to call it; only rank 0's result is complete."""
        state = {
            "model": self.net.state_dict(), "ema": self.ema.state_dict(), "optimizer": self.optimizer.state_dict(),
            "loss_scale": self.loss_scale.state_dict(), "projection": getattr(self.loss_fn, "projection", None),
            "step": self.step, "epoch": self.epoch, "batch": self.batch,
            "sums": dict(zip(self.sums, distributed.reduce(self.sums.values())))}
        collect, shape = self.net.head.shard.collect_rows, self.net.head.weight.shape  # of the head and its momentum
        return weights.map_tensors(state, lambda tensor: collect(tensor) if tensor.shape == shape else tensor)

    def load_state_dict(self, state):
        """Continue from what `state_dict` returned, with any number of ranks. Raises UserError if it does not fit."""
        head = self.net.head
        own, shape = slice(*head.shard.bounds(head.classes)), (head.classes, head.weight.shape[1])

        def copy_own(tensor):  # the file's tensors stay on the disk, and a slice would keep all rows
            return (tensor[own] if tensor.shape == shape else tensor).clone()
        groups = self.optimizer.state_dict()["param_groups"]  # of these settings, which --force may have changed
        try:
            state = weights.map_tensors(state, copy_own)
            self.net.load_state_dict(state["model"])
            self.ema.load_state_dict(state["ema"] or {"net": state["model"], "updates": 0})
            self.optimizer.load_state_dict(state["optimizer"] | {"param_groups": groups})
            self.loss_scale.load_state_dict(state["loss_scale"])
            if state["projection"] is not None:
                self.loss_fn.projection.copy_(state["projection"])
        except (RuntimeError, KeyError, AttributeError) as error:
            raise UserError(f"last.pt does not fit what is to be trained ({first_line(error)}): start a new run, from "
                            "its best.pth with --model-path") from None
        self.step, self.epoch, self.batch = state["step"], state["epoch"], state["batch"]
        self.sums = Counter(state["sums"]) if distributed.is_main() else new_sums()

    def exported_weights(self, args):
        """Return the state dict of an epoch's weight file: the averaged network's. Every rank has to call it.

        A head is left out if it has learned nothing or has more than 100,000 classes (205 MB at 512 dimensions).
        """
        head, state = self.ema.net.head, self.ema.net.state_dict()
        if args.label_weight and head.classes <= 100_000:
            return state | {"head.weight": head.shard.collect_rows(head.weight.detach())}
        return {name: value for name, value in state.items() if not name.startswith("head.")}

    def describe(self, batches, val_loader, args):
        """Yield lines for the log: the data, the parameters, the device and the learning rate."""
        rate, head = self.learning_rate, self.net.head
        parameters = sum(map(torch.numel, self.net.arcface.parameters())) + head.classes * head.weight.shape[1]
        held_out, = distributed.reduce([len(val_loader.dataset) if val_loader else 0])
        yield (f"{head.classes} people, {batches.count} images to train on, {held_out:.0f} held out, "
               f"{len(batches)} batches an epoch, {rate.total_steps} steps in all, {parameters:,} parameters")
        precision = str(self.autocast_dtype or "float32").removeprefix("torch.")
        yield f"device: {describe_device(self.device, args.bf16)}, {distributed.world_size()} rank(s), {precision}"
        low, high = optim.LIMITS[args.optimizer_type]
        limits = f"scaled with the batch, within {low:g} to {high:g}" if args.scale_lr else "as given"
        yield f"learning rate: {rate.peak:g}, at the end {rate(rate.total_steps - 1):g} ({limits})"


def new_sums():
    return Counter(images=0, labeled=0, loss=0.0, correct=0.0, seconds=0.0, data_wait=0.0)


def compile_if_it_pays(state, args, images):
    """Compile the backbone if --compile asks for it, or by default if that pays for so many images. Return a line."""
    if args.compile is None:
        args.compile = (state.device.type == "cpu" and images >= COMPILE_FROM_IMAGES and sys.platform == "linux"
                        and BACKBONES[args.backbone].compile_pays and shutil.which("g++") is not None)
    if not args.compile:
        return "torch.compile: no (--compile turns it on)"
    torch._dynamo.config.suppress_errors = True  # what cannot be compiled runs eagerly, with a warning
    # Inductor chooses the memory layout by the convolutions, of which a backward pass has only the gradients. Without
    # this option it copies inputs to another layout: MobileFaceNet 60 instead of 70 img/s, in bfloat16 18% slower.
    options = {"force_layout_optimization": True} if state.device.type == "cpu" else {}
    state.net.arcface.compile(options=options)
    return "torch.compile: yes, the first step takes up to a minute (--no-compile: no)"
