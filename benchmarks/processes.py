"""Measurements that each need a process of their own."""
import json
import os
import statistics
import subprocess
import sys


def run_again(*arguments, launcher=(), **environment):
    """Run this script with other arguments in a new process. Return the JSON object on its last line."""
    result = subprocess.run([sys.executable, *launcher, sys.argv[0], *map(str, arguments)], check=True,
                            stdout=subprocess.PIPE, encoding="utf-8", env=os.environ | environment)
    return json.loads(result.stdout.splitlines()[-1])


def compare_sides(repeats, rate):
    """Run this script with `--side plain` and `--side ours` in turn, and print both rates and their ratio.

    Returns the last object of each side.
    """
    found = {"plain": [], "ours": []}
    for repeat in range(1, repeats + 1):
        for side, results in found.items():
            results.append(run_again(*sys.argv[1:], "--side", side))
        print(f"{repeat}:", *(f"{side} {results[-1][rate]:.1f}" for side, results in found.items()), flush=True)
    plain, ours = ([result[rate] for result in results] for results in found.values())
    ratios = sorted(b / a for a, b in zip(plain, ours))
    print(f"median {rate}: plain {statistics.median(plain):.1f}, ours {statistics.median(ours):.1f}; "
          f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    return found["plain"][-1], found["ours"][-1]
