"""Batches in, weights out: the loss, the step, its schedule, and a run with its folder and state."""
