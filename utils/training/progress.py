"""How far the training is: a bar on a terminal, a line a minute elsewhere."""
import math
import sys
import time
from datetime import timedelta

from tqdm import tqdm

from utils.common import distributed


class Progress:
    """`report(means)` after each step of an epoch, with those of rank 0; use as a context manager around the epoch."""

    def __init__(self, training, batches, epochs, total_steps):
        self.training, self.total_steps = training, total_steps
        self.epoch = f"epoch {training.epoch + 1}/{epochs}"
        self.bar = tqdm(total=batches, initial=training.batch, desc=self.epoch, unit="batch",
                        disable=not sys.stderr.isatty() or not sys.stdout.isatty())
        self.began = self.written = time.perf_counter()
        self.first_step = training.step

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()

    def report(self, means):
        now, step = time.perf_counter(), self.training.step
        left = (now - self.began) / max(1, step - self.first_step) * (self.total_steps - step)
        eta = timedelta(seconds=round(left))  # "0:05:00", "2 days, 3:04:05"
        accuracy = "" if math.isnan(means["accuracy"]) else f"acc {means['accuracy']:.3f} "  # none without labels
        text = (f"loss {means['loss']:.3f} {accuracy}lr {self.training.learning_rate(step - 1):.2g} "
                f"{means['images_per_second'] * distributed.world_size():.0f} img/s ETA {eta}")
        if not self.bar.disable:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(self.training.batch - self.bar.n)
        elif now - self.written > 60:
            print(f"{self.epoch} step {step}/{self.total_steps}: {text}", flush=True)
            self.written = now
