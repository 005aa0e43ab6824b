"""SIGINT and SIGTERM as a request that the training loop meets after its step."""
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
