"""SIGINT and SIGTERM as a wish that the training loop grants after its step."""
import signal


class StopRequest:
    """`received` is 0, or the number of the signal that came. A second signal of the kind ends the process at once."""

    def __init__(self):
        self.received = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.note)

    def note(self, number, frame):
        self.received = number
        signal.signal(number, signal.SIG_DFL)


def ignore_signals(worker):
    """For DataLoader workers: Ctrl-C reaches the whole terminal group, but only the main process decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
