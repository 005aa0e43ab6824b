"""Train a face-recognition network with ArcFace.

    python txt_annotation.py                         first: datasets/<person>/*.jpg -> cls_train.txt
    python train.py                                  MobileFaceNet, 100 epochs, batch 64
    python train.py --backbone iresnet50 --batch-size 128 --bf16
    python train.py --model-path model_data/arcface_mobilefacenet.pth --init-lr 1e-3 --epochs 10
    python train.py --teacher model_data/published_iresnet50.pth --augment affine color mixup
    python train.py --resume                         continue the newest run in logs/
    torchrun --nproc-per-node 4 train.py --batch-size 512 --init-lr 0.0125

Writes to logs/<time>_<backbone>/: weights of every epoch, best.pth, last.pt, log.csv, curves, settings.json.
The flags are in utils/training/settings.py. One step, in order: main, train_one_epoch, train_step,
then LabelLoss, MarginHead.losses (nets/head.py) and SoftmaxTerms (nets/softmax.py).
"""
import math
import shlex
import time
from itertools import islice

import torch
from torch.utils.data import default_collate

from nets.head import IGNORE
from nets.partial_fc import sampled_head
from utils.common import distributed
from utils.common.device import choose_device, keep_freed_memory, send, tune_cuda
from utils.common.errors import UserError, first_line, script
from utils.data.augmentation import augment
from utils.data.dataset import batches_of, make_loaders, mix_seeds, read_training_set
from utils.faces.images import check_input_shape
from utils.training.checkpoint import check_resumed, save_checkpoint
from utils.training.losses import make_loss
from utils.training.optim import clip_gradients
from utils.training.run import Run, StopRequest, progress_bar
from utils.training.settings import check_ranks, parse_args
from utils.training.state import MEMORY_FORMAT, TrainState, compile_if_it_pays, make_net, new_sums
from utils.training.validation import measure_benchmarks, read_benchmarks, validate
from utils.weights.checkpoint import InvalidWeights


@script
def main():
    args, checkpoint = parse_args()
    check_input_shape(args.input_shape)
    device = init_device(args)
    images, labels, class_names, args.images_sha256 = read_training_set(args)
    args.classes = len(class_names)
    if checkpoint:
        check_resumed(checkpoint["settings"], args)
    benchmarks = read_benchmarks(args, class_names)
    train_loader, val_loader = make_loaders(images, labels, args, device)
    batches = train_loader.batch_sampler
    net = make_net(args, len(class_names), device)
    state = TrainState(args, net, make_loss(args, net, images, labels, device), batches, device)
    run = Run.start(args)
    if checkpoint:
        state.load_state_dict(checkpoint)
        run.rows = checkpoint["rows"]
        print(f"resumed after step {state.step}, in epoch {state.epoch + 1}")
        if state.epoch >= args.epochs:
            raise UserError(f"{run.folder} has finished its {args.epochs} epochs: give more --epochs, with --force")
        del checkpoint  # it would keep its file open
    print("\n".join([f"run: {run.folder}", *state.describe(batches, val_loader, args)]))
    draw_first_batch(train_loader, class_names, run, args)
    print(compile_if_it_pays(state, args, (args.epochs - state.epoch) * batches.count))
    run.write_json("settings.json", vars(args))  # here, because --compile and the defaults are decided
    stop, first_step = StopRequest(), state.step
    stop.listen()

    while state.epoch < args.epochs:
        try:
            stopped = train_one_epoch(state, train_loader, run, stop, args)
        except Exception as error:  # with several ranks the others cannot know of it; invalid weights are never saved
            if not isinstance(error, InvalidWeights) and distributed.world_size() == 1 and state.step > first_step:
                save_checkpoint(state, run, args)
            if isinstance(error, torch.OutOfMemoryError):
                raise UserError(f"{first_line(error)}: lower --batch-size, and raise --accumulate") from None
            raise
        save_checkpoint(state, run, args)  # so that an error in the evaluation does not lose the epoch
        if stopped:
            break
        finish_epoch(state, run, val_loader, benchmarks, args)
        save_checkpoint(state, run, args)
    if stopped:
        launcher = "python" if distributed.world_size() == 1 else "torchrun ..."
        print(f"stopped after step {state.step}, continue with: {launcher} train.py --resume "
              f"{shlex.quote(run.folder.as_posix())}", flush=True)
    else:
        run.print_best()
    distributed.stop()
    return 128 + stopped if stopped else 0


def train_one_epoch(state, loader, run, stop, args):
    """Train for the rest of the epoch, or until a rank receives a signal. Return the signal's number, or 0.

    loader: a DataLoader over EpochBatches.
    """
    loader.batch_sampler.epoch, loader.batch_sampler.start = state.epoch, state.batch
    state.set_training_mode(freeze_bn=state.epoch >= args.epochs - args.freeze_bn_epochs)
    batches = batches_of(loader)
    began = saved = time.perf_counter()
    with progress_bar(state, args.epochs) as bar:
        while group := list(islice(batches, args.accumulate)):
            fetched = time.perf_counter()
            loss, correct = train_step(state, group, args)
            state.batch += len(group)
            now = time.perf_counter()

            labels = torch.cat([labels for _, labels, _ in group])
            is_main = distributed.is_main()  # a Counter adds; the seconds are those of rank 0 alone
            state.sums.update(images=len(labels), labeled=(labels != IGNORE).sum().item(), loss=loss * len(labels),
                              correct=correct, seconds=is_main * (now - began), data_wait=is_main * (fetched - began))
            bar.update(state.step - bar.n)
            bar.set_postfix_str(f"loss {state.sums['loss'] / state.sums['images']:.3f}, "
                                f"lr {state.learning_rate(state.step):.2g}", refresh=False)

            due = 0 < args.checkpoint_every * 60 < now - saved
            received, due = map(int, distributed.reduce([stop.received, due], largest=True))
            if received:
                return received
            if due:
                save_checkpoint(state, run, args)
                saved = now
            began = time.perf_counter()
    return 0


def train_step(state, batches, args):
    """Take one optimizer step on a list of batches, whose gradients are averaged.

    batches: (uint8 images (B, H, W, 3), labels (B,), indices (B,)), of this rank.
    Return (mean loss, number of images that are classified correctly without the margin).
    Waits for the device once (tests/training/test_waits.py counts).
    """
    lr = state.learning_rate(state.step)
    state.net.head.m = state.margin(state.step)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    seed = mix_seeds(args.seed, state.step)
    torch.manual_seed(seed + distributed.rank())  # of dropout: a resumed run draws the same
    state.optimizer.zero_grad(set_to_none=True)
    labels = [send(labels, state.device) for _, labels, _ in batches]
    losses, correct = [], []
    with sampled_head(state.net.head, state.optimizer, torch.cat(labels), args.sample_rate, seed):
        for number, (images, _, indices) in enumerate(batches):
            images, lam = augment(send(images, state.device), args.seed, state.epoch, state.batch + number,
                                  args.augment)
            # DistributedDataParallel averages the gradients over the ranks once a step, not once a batch.
            state.wrapped_loss.require_backward_grad_sync = number == len(batches) - 1
            with state.autocast():
                loss, is_correct = state.wrapped_loss(images.contiguous(memory_format=MEMORY_FORMAT), labels[number],
                                                      lam, state.loss_fn.targets(indices))
            (loss * (state.loss_scale.value / len(batches))).backward()
            losses.append(loss.detach())
            correct.append(is_correct.sum())

        parameters = list(state.net.parameters())
        state.loss_scale.unscale_(parameters)
        norm = clip_gradients(parameters, state.net.head, args.grad_clip)
        loss, correct, norm = torch.stack([  # the one wait for the device
            torch.stack(losses).mean(), torch.stack(correct).sum(), norm]).tolist()
        check_step(state, loss, norm, lr)
        finite = math.isfinite(norm)  # otherwise fp16 overflowed, and these batches are skipped
        if finite:
            state.optimizer.step()
    state.loss_scale.update(overflow=not finite)
    if finite:
        state.step += 1
        state.ema.update(state.net)
    return loss, correct


def check_step(state, loss, norm, lr):
    """Raise UserError if the loss or the gradient is not finite.

    With a loss scale, gradients that overflow are normal until the scale has been halved to its minimum.
    """
    where = f"at step {state.step} (epoch {state.epoch + 1}, learning rate {lr:.3g})"
    if not math.isfinite(loss) or not (math.isfinite(norm) or state.loss_scale.enabled):
        raise InvalidWeights(f"the loss is {loss} and the gradient norm {norm} {where}: lower --init-lr, or set "
                             "--grad-clip 5; last.pt, if there is one, holds an earlier state")
    if not math.isfinite(norm) and state.loss_scale.value < 2:
        raise UserError(f"the gradients exceed fp16 {where}: use --bf16 (to resume: --no-fp16 --bf16 --force)")


def finish_epoch(state, run, val_loader, benchmarks, args):
    """Validate, measure, log and save the weights of the epoch that has ended. Every rank takes part, rank 0 writes."""
    metrics = state.epoch_metrics()
    state.epoch, state.batch, state.sums = state.epoch + 1, 0, new_sums()
    distributed.copy_buffers_of_main(state.ema.net)
    run.log({"epoch": state.epoch, "lr": state.learning_rate(state.step - 1), **metrics, **validate(state, val_loader),
             **measure_benchmarks(state.ema.net, benchmarks, args)})
    run.save_weights(state.exported_weights(args), args)


def init_device(args):
    """Return the device of this rank, after joining the other ranks of torchrun, if there are any."""
    device = distributed.start(choose_device(args.device))
    check_ranks(args, device, distributed.world_size())
    keep_freed_memory(device)
    if device.type == "cuda":
        tune_cuda(device)
    return device


def draw_first_batch(loader, class_names, run, args):
    """Write batch.png: the first batch as the network sees it."""
    images, labels, _ = default_collate([loader.dataset[index] for index in next(iter(loader.batch_sampler))])
    names = ["unlabeled" if label == IGNORE else class_names[label] for label in labels]
    run.save_batch_image(augment(images, args.seed, 0, 0, args.augment)[0], names)


if __name__ == "__main__":
    main()
