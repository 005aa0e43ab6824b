"""Flags, losses, optimizer and schedules; the state, folder and checkpoints of a run."""
