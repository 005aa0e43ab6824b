"""Measurements that each need a process of their own."""
import multiprocessing
from concurrent.futures import ProcessPoolExecutor


def in_new_processes(measure, *calls):
    """Return [measure(*arguments) for arguments in calls], each in a new process, all at the same time."""
    with ProcessPoolExecutor(len(calls), multiprocessing.get_context("spawn")) as pool:
        return [future.result() for future in [pool.submit(measure, *arguments) for arguments in calls]]
