"""Images per second of a plain training loop and of train.py's, in turn, and the ratio of the two.

    python benchmarks/train_speed.py --annotation-path cls_train.txt
    python benchmarks/train_speed.py --annotation-path cls_train.txt --backbone iresnet50 --batch-size 32 --bf16
    python benchmarks/train_speed.py --annotation-path cls_train.txt --steps 50 --repeats 1     do the losses agree?

plain: eager, channels first, float32, the C library's malloc and cuDNN's choice as they are, margin by a one-hot
matrix, accuracy by a softmax, one parameter after the other in the optimizer, in the order of the published scripts.
ours: the step of train.py, set up as train.py does, in a long run. Each measurement is a process of its
own; pictures are decoded beforehand in both. Every flag of train.py is one here; the plain loop knows those of network,
data, learning rate and device. Peak memory is the process's, or what PyTorch took of a CUDA device.
"""
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import default_collate

sys.path.insert(0, str(Path(__file__).parent.parent))
from train import init_device, train_step
from utils.common.device import choose_device
from utils.common.errors import script
from utils.data.annotation import read_annotation
from utils.data.augmentation import augment
from utils.data.dataset import EpochBatches, FaceDataset
from utils.training.compilation import compile_if_it_pays
from utils.training.losses import LabelLoss
from utils.training.settings import check_args, make_parser
from utils.training.state import TrainState, make_net

WARM_UP = 3  # steps not counted


def parse_settings():
    parser = make_parser()
    parser.add_argument("--steps", type=int, default=8, help="counted steps of one measurement")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each loop")
    parser.add_argument("--side", choices=("plain", "ours"), help="one measurement of this loop, as JSON")
    settings = parser.parse_args()
    check_args(settings, parser)
    return settings


def measure(settings):
    """Run one loop. -> {"images_per_second", "losses", "peak_megabytes"}."""
    if settings.side == "ours":
        device = init_device(settings)
    else:
        settings.bf16 = settings.fp16 = False
        device = choose_device(settings.device)
    paths, labels = read_annotation(settings.annotation_path)
    dataset = FaceDataset(paths, labels, torch.arange(len(labels)), settings.input_shape, settings.letterbox_image)
    batches = EpochBatches(len(paths), settings.batch_size, settings.seed)
    groups = [default_collate([dataset[i] for i in indices])
              for _, indices in zip(range(WARM_UP + settings.steps), batches)]
    net = make_net(settings, int(labels.max()) + 1, device)
    training = TrainState(settings, net, LabelLoss(net), batches, device)
    if settings.side == "ours":
        step = our_step
        print(compile_if_it_pays(training, settings, math.inf), file=sys.stderr)
    else:
        step = plain_step
        net.to(memory_format=torch.contiguous_format)
        for group in training.optimizer.param_groups:
            group["fused"] = False
    training.set_training_mode(freeze_bn=False)
    seconds, losses = [], []
    for group in groups:
        start = time.perf_counter()
        losses.append(step(training, group, settings))
        seconds.append(time.perf_counter() - start)
    peak = (torch.cuda.max_memory_reserved(device) if device.type == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return {"images_per_second": batches.batch_size / statistics.median(seconds[WARM_UP:]), "losses": losses,
            "peak_megabytes": peak / 2 ** 20}


def our_step(training, group, settings):
    loss, _ = train_step(training, [group], settings)
    training.batch += 1
    return loss


def plain_step(training, group, settings):
    pixels, labels = (tensor.to(training.device) for tensor in group[:2])
    images = augment(pixels, settings.seed, training.epoch, training.batch)[0].contiguous()
    for parameters in training.optimizer.param_groups:
        parameters["lr"] = training.learning_rate(training.step)
    training.optimizer.zero_grad()
    head = training.net.head
    cosine = F.linear(F.normalize(training.net.arcface(images)), F.normalize(head.weight))
    one_hot = torch.zeros_like(cosine).scatter_(1, labels[:, None], 1)
    logits = (one_hot * head.add_margin(cosine, None) + (1 - one_hot) * cosine) * head.s
    loss = F.nll_loss(F.log_softmax(logits, -1), labels)
    loss.backward()
    training.optimizer.step()
    (F.softmax(logits, -1).argmax(-1) == labels).float().mean().item()
    training.step, training.batch = training.step + 1, training.batch + 1
    return loss.item()


@script
def main():
    settings = parse_settings()
    if settings.side:
        print(json.dumps(measure(settings)))
        return
    rates, last = {"plain": [], "ours": []}, {}
    for repeat in range(settings.repeats):
        for side in rates:
            result = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--side", side], check=True,
                                    stdout=subprocess.PIPE, encoding="utf-8")
            last[side] = json.loads(result.stdout.splitlines()[-1])
            rates[side].append(last[side]["images_per_second"])
        print(f"{repeat + 1}: plain {rates['plain'][-1]:.1f} img/s, ours {rates['ours'][-1]:.1f} img/s", flush=True)
    ratios = sorted(ours / plain for plain, ours in zip(rates["plain"], rates["ours"]))
    print(f"{settings.backbone}, batch {settings.batch_size}: median plain {statistics.median(rates['plain']):.1f}, "
          f"ours {statistics.median(rates['ours']):.1f} img/s; ratio {statistics.median(ratios):.2f} "
          f"({ratios[0]:.2f} to {ratios[-1]:.2f})")
    print(f"peak memory: plain {last['plain']['peak_megabytes']:.0f} MB, ours {last['ours']['peak_megabytes']:.0f} MB")
    differences = [abs(a - b) for a, b in zip(last["plain"]["losses"], last["ours"]["losses"])]
    print(f"largest difference of the first {len(differences)} losses: {max(differences):.2e}")


if __name__ == "__main__":
    main()
