"""Engines of the tests of peers, run in a peer's process: one function a behaviour, called with a case and a thread count."""

import ctypes
import os


def right(case, threads):
    """Give back what the case wants."""
    return list, lambda: case["want"]


def off_by_two(case, threads):
    """One code of many is wrong."""
    wrong = case["want"].copy()
    wrong.flat[-1] += 2
    return list, lambda: wrong


def refuses(case, threads):
    """Say no."""
    raise ValueError(f"no kernel for {threads} threads.\nAnd more of it.")


def lacks(case, threads):
    """Need a package that nobody has."""
    import pyquant_no_such_engine  # noqa: F401


def dies(case, threads):
    """Take the process down."""
    os._exit(3)


def asks_for_tiles(case, threads):
    """Give the system's answer to a wish for AMX: 0, or -1."""
    answer = ctypes.CDLL(None).syscall(158, 0x1023, 18)
    return list, lambda: case["want"] * 0 + answer
