"""The flags of train.py, and which of them make sense together."""
import argparse
import math
import os

from nets.arcface import BACKBONES, DEFAULT_BACKBONE, HEADS, backbone_name
from utils.common.device import DEVICES, available_cores
from utils.common.errors import SettingsParser, UserError, non_negative_float, non_negative_int, number, positive_int
from utils.common.files import hash_file
from utils.data.augmentation import KINDS
from utils.training import checkpoint
from utils.weights.checkpoint import find_weights, infer_backbone, read_weights

below_one = number(minimum=0, below=1)


def parse_args():
    """Return the settings, and the checkpoint to resume from or None.

    A resumed run takes its settings from its checkpoint; flags beside --resume override them.
    """
    parser, resumed = make_parser(), None
    args = parser.parse_args()
    if args.resume is not None:
        path = checkpoint.find_checkpoint(args.resume, args.save_dir)
        resumed = checkpoint.read_checkpoint(path)
        parser.set_defaults(**resumed["settings"])
        args = parser.parse_args()
        args.resume = str(path)
    check_args(args, parser)
    return args, resumed


def make_parser():
    switch = argparse.BooleanOptionalAction
    parser = SettingsParser("Train a face-recognition network with ArcFace.")
    data = parser.add_argument_group("data")
    data.add_argument("--annotation-path", "--rec", default="cls_train.txt", metavar="PATH", help="the list that "
                      "txt_annotation.py wrote, or the folder of insightface's train.rec and train.idx")
    data.add_argument("--datasets-path", metavar="DIR", help="the folder of the people's folders, if it has moved "
                      "(default: as in the list)")
    data.add_argument("--unlabeled", metavar="DIR", help="with --teacher: train on all images below this folder too; a "
                      "teacher's embeddings need no labels")
    data.add_argument("--input-shape", type=positive_int, nargs=2, default=[112, 112], metavar=("H", "W"),
                      help="height and width of the network's images")
    data.add_argument("--val-split", type=below_one, default=0.01, help="fraction of the images held out")
    data.add_argument("--augment", nargs="*", choices=KINDS, metavar="KIND", default=[],
                      help=f"augment images besides flipping: any of {', '.join(KINDS)} (default: none)")
    data.add_argument("--num-workers", type=non_negative_int, default=min(4, available_cores()),
                      help="processes that decode images (default: 4, at most the cores)")
    network = parser.add_argument_group("network")
    network.add_argument("--backbone", help=f"the network that embeds: {', '.join(BACKBONES)} "
                         f"(default: that of --model-path, else {DEFAULT_BACKBONE})")
    start = network.add_mutually_exclusive_group()
    start.add_argument("--model-path", default="", help="start from these weights: a .pth file, or a run's folder "
                       "for its best.pth (default: random weights)")
    start.add_argument("--pretrained", action=switch, default=False,
                       help="start the backbone from model_data/<backbone>_backbone_weights.pth")
    network.add_argument("--head", choices=HEADS, default="arcface", help="margin loss")
    network.add_argument("--m", type=number(minimum=0, below=math.pi), default=0.5,
                         help="margin of the head, in radians for arcface")
    network.add_argument("--margin-warmup-epochs", type=non_negative_float, default=0,
                         help="increase the margin from 0 to --m over the first N epochs")
    network.add_argument("--shard-head", action=switch, default=False, help="shard the class weights over the ranks")
    network.add_argument("--sample-rate", type=number(above=0, maximum=1), default=1.0, metavar="R",
                         help="Partial FC: fraction of the classes in each step's softmax (the batch's classes and "
                         "random negatives)")
    teacher = parser.add_argument_group("distillation")
    teacher.add_argument("--teacher", nargs="+", default=[], metavar="WEIGHTS",
                         help="learn the embeddings of these networks (default: none)")
    teacher.add_argument("--teacher-flip", action=switch, default=False,
                         help="average the teacher's embedding with that of the flipped image")
    teacher.add_argument("--label-weight", type=non_negative_float,
                         help="weight of the labels' loss (default: 1 without a teacher, 0 with one)")
    optim = parser.add_argument_group("optimization")
    optim.add_argument("--init-epoch", type=non_negative_int, default=0,
                       help="start at this epoch of the schedule, as if the earlier ones had run")
    optim.add_argument("--epochs", type=positive_int, default=100, help="passes over the images")
    optim.add_argument("--batch-size", type=number(int, minimum=2), default=64, help="images in a batch, on all ranks")
    optim.add_argument("--accumulate", type=positive_int, default=1, help="batches in an optimizer step")
    optim.add_argument("--init-lr", type=number(above=0), default=1e-2,
                       help="peak learning rate for a step of 64 images; it is scaled with the images of a step")
    optim.add_argument("--scale-lr", action=switch, default=True,
                       help="scale --init-lr with the images of a step and keep it within the published limits")
    optim.add_argument("--min-lr-ratio", type=number(above=0, maximum=1), default=0.01,
                       help="lowest learning rate, as a fraction of the peak")
    optim.add_argument("--lr-decay-type", choices=("cos", "step"), default="cos",
                       help="decay the learning rate along a cosine, or in ten steps")
    optim.add_argument("--milestones", type=number(above=0), nargs="*", default=[], metavar="EPOCH",
                       help="divide the learning rate by ten at each of these epochs instead (default: none)")
    optim.add_argument("--warmup-epochs", type=non_negative_float, help="increase the learning rate over the first N "
                       "epochs (default: a tenth of the run, 1 to 3 epochs, before a cosine; else 0)")
    optim.add_argument("--optimizer-type", choices=("sgd", "adam", "adamw"), default="sgd", help="optimizer")
    optim.add_argument("--momentum", type=below_one, default=0.9, help="momentum of SGD, first beta of Adam")
    optim.add_argument("--weight-decay", type=non_negative_float, nargs="+", default=[5e-4],
                       help="weight decay, and another one for the head and the embedding layer if two are given; "
                       "BatchNorm, PReLU and biases have none")
    optim.add_argument("--grad-clip", type=non_negative_float, default=0, help="largest gradient norm; 0 clips nothing")
    optim.add_argument("--ema", type=below_one, default=0, metavar="DECAY",
                       help="evaluate and save a moving average of the weights, such as 0.999; 0 averages nothing")
    optim.add_argument("--freeze-bn-epochs", type=non_negative_int, default=0, metavar="N",
                       help="keep BatchNorm in eval mode in the last N epochs")
    optim.add_argument("--seed", type=number(int, minimum=0, maximum=2 ** 63 - 1), default=11, help="random seed")
    results = parser.add_argument_group("results")
    results.add_argument("--save-dir", default="logs", help="where the run makes its folder")
    results.add_argument("--save-period", type=positive_int, default=1, help="save the weights of every N-th epoch")
    results.add_argument("--checkpoint-every", type=non_negative_float, default=0, metavar="MINUTES",
                         help="write last.pt this often too, not only after each epoch")
    results.add_argument("--resume", nargs="?", const="", metavar="RUN",
                         help="continue this run, or the newest one without a path (default: a new run)")
    results.add_argument("--force", action="store_true", help="resume although settings or images differ")
    results.add_argument("--lfw-eval", action=switch,
                         help="evaluate on LFW after every epoch (default: if --lfw-dir exists)")
    results.add_argument("--eval", nargs="+", metavar="BENCHMARK", help="evaluate on these instead: lfw, and "
                         "insightface's files such as agedb_30.bin (default: see --lfw-eval)")
    results.add_argument("--best-by", choices=("first", "mean"), default="first",
                         help="choose best.pth by the first benchmark's accuracy, or by the mean of all")
    results.add_argument("--lfw-dir", default="lfw", help="the aligned images of LFW")
    results.add_argument("--lfw-pairs", default="model_data/lfw_pair.txt", help="LFW's official list of pairs")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help=DEVICES)
    machine.add_argument("--fp16", action=switch, default=False, help="mixed precision with a loss scale, on CUDA")
    machine.add_argument("--bf16", action=switch, default=False, help="mixed precision in bfloat16")
    machine.add_argument("--compile", action=switch, help="compile the backbone by torch.compile (default: if it pays)")
    machine.add_argument("--sync-bn", action=switch, default=False,
                         help="take BatchNorm's statistics over all ranks, on CUDA")
    return parser


def check_args(args, parser):
    """Fill in defaults that depend on other flags. Ends with parser.error() if flags do not fit together.

    Raises UserError for weights that do not exist.
    """
    if args.init_epoch >= args.epochs:
        parser.error(f"--init-epoch {args.init_epoch} leaves no epoch before --epochs {args.epochs}")
    if len(args.weight_decay) > 2:
        parser.error("--weight-decay takes one or two numbers")
    if args.fp16 and args.bf16:
        parser.error("--fp16 and --bf16 exclude each other: add --no-fp16 or --no-bf16")
    if args.eval and args.lfw_eval:
        parser.error("--eval and --lfw-eval exclude each other: add --no-lfw-eval, and name lfw in --eval to keep it")
    if args.label_weight is None:
        args.label_weight = 0.0 if args.teacher else 1.0
    if not args.teacher and (args.teacher_flip or args.label_weight != 1 or args.unlabeled):
        parser.error("--teacher-flip, --label-weight and --unlabeled need a --teacher")
    if args.teacher and (args.shard_head or args.sample_rate < 1):
        parser.error("--shard-head and --sample-rate are for training on labels: leave out --teacher")
    args.teacher = [str(find_weights(path)) for path in args.teacher]
    if missing := [path for path in args.teacher if not os.path.isfile(path)]:
        raise UserError(f"{missing[0]} does not exist: give --teacher a weight file, or fetch one with predict.py "
                        "--download")
    args.teacher_sha256 = [hash_file(path) for path in args.teacher]
    args.model_path = args.model_path and str(find_weights(args.model_path))
    if args.backbone is None:
        args.backbone = infer_backbone(read_weights(args.model_path)) if args.model_path else DEFAULT_BACKBONE
    try:
        args.backbone = backbone_name(args.backbone)
    except ValueError as error:
        parser.error(f"--backbone: {error}")


def check_ranks(args, device, world_size):
    """Raise UserError for flags that do not fit the device or the number of ranks."""
    if args.fp16 and device.type == "cpu":
        raise UserError("--fp16 needs CUDA: on a CPU use --bf16")
    if args.sync_bn and device.type != "cuda":
        raise UserError("--sync-bn needs CUDA: add --no-sync-bn")
    if args.sample_rate < 1 and world_size > 1 and not args.shard_head:
        raise UserError("--sample-rate with several ranks needs a sharded head: add --shard-head")
    if args.batch_size % world_size:
        raise UserError(f"--batch-size {args.batch_size} is for all ranks together: use a multiple of {world_size}")
