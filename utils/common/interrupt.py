"""SIGINT and SIGTERM as a wish that the training loop grants after its step."""
import os
import signal


class StopRequest:
    """`received` is 0, or the number of the signal that came after listen().

    A second signal of the kind ends the process at once.
    """

    def __init__(self):
        self.received = 0

    def listen(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.note)

    def note(self, number, frame):
        self.received = number
        signal.signal(number, signal.SIG_DFL)


def leave_deaths_to_the_loader():
    """Undo the SIGCHLD handler that the first DataLoader with workers installs.

    When a worker was killed it raises wherever the main process is, also half-way through an optimizer step. The
    loader itself finds a dead worker too, within 5 seconds, but only while it waits for a batch.
    """
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def leave_signals_to_main(worker):
    """For DataLoader workers: Ctrl-C and a SIGTERM to the group reach every process of it, but only main decides.

    A worker therefore leaves the group. It must not ignore SIGTERM: that is how Python ends workers at exit.
    """
    if hasattr(os, "setsid"):
        os.setsid()
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
