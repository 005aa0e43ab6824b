"""The scale of the loss in fp16 (Micikevicius et al. 2018, arXiv 1710.03740)."""
import torch

FIRST, GROWS_AFTER = 2.0 ** 16, 2000  # those of torch.amp.GradScaler


class LossScale:
    """`value` multiplies the loss, so that small gradients do not vanish in fp16; without fp16 it is 1 and stays so.

    torch.amp.GradScaler with its state in Python: it keeps its own on the device, and each look at it is a wait. What
    it needs to know, whether the gradients overflow, a step reads with its loss; over several processes it is the same.
    """

    def __init__(self, enabled, value=FIRST):
        self.enabled, self.value, self.good_steps = enabled, value if enabled else 1.0, 0

    def unscale_(self, parameters):
        """Divide the gradients by what the loss was multiplied by."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.enabled and gradients:
            torch._foreach_mul_(gradients, 1 / self.value)

    def update(self, overflow):
        """After each step: half of it where the gradients overflow, twice as much after GROWS_AFTER that do not."""
        self.good_steps = 0 if overflow else self.good_steps + 1
        if self.enabled and overflow:
            self.value /= 2
        elif self.enabled and self.good_steps % GROWS_AFTER == 0:
            self.value *= 2

    def state_dict(self):
        """In GradScaler's names."""
        return {"scale": self.value, "_growth_tracker": self.good_steps} if self.enabled else {}

    def load_state_dict(self, state):
        """state: of state_dict(), or GradScaler's; an empty one, of a run without fp16, changes nothing."""
        if self.enabled and state:
            self.value, self.good_steps = float(state["scale"]), int(state["_growth_tracker"])
