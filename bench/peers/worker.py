"""The process of one peer: builds cases and times them, as asked over a socket. Not run by hand."""

from __future__ import annotations

import argparse
import ctypes
import importlib
import logging
import struct
import sys
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import numpy as np

from bench import timing


def main(argv: Sequence[str] | None = None) -> int:
    """Answer questions until the other side closes the socket."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers.worker", description=__doc__)
    parser.add_argument("socket", type=int)
    parser.add_argument("module")
    parser.add_argument("--without-amx", action="store_true")
    args = parser.parse_args(argv)
    if args.without_amx:
        forbid_amx()
    timing.keep_memory()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    try:
        serve(Connection(args.socket), args.module)
    except (EOFError, ConnectionError):
        # The other side is done, or gone.
        return 0


def serve(pipe: Connection, module: str) -> NoReturn:
    """Answer question after question, of one case at a time."""
    run = None
    while True:
        question, *words = pipe.recv()
        # Whatever an engine raises is its answer to the other side.
        try:
            if question == "build":
                run = None
                run, answer = build(module, *words)
            else:
                answer = {"calls": timing.calls_of, "seconds": timing.seconds_of}[question](run, *words)
        except Exception as error:
            pipe.send((False, said(error)))
        else:
            pipe.send((True, answer))


def build(module: str, suite: str, case: dict[str, Any], threads: int) -> tuple[Any, Any]:
    """The call to time, and the result of its first time."""
    engine = importlib.import_module(module)
    if not hasattr(engine, suite):
        raise NotImplementedError(f"it has nothing for {suite}")
    run, result = getattr(engine, suite)(case, threads)
    run()
    return run, array(result())


def array(result: Any) -> np.ndarray:
    """A result as numpy; of torch's quantised tensors the codes."""
    if getattr(result, "is_quantized", False):
        result = result.int_repr()
    elif hasattr(result, "float"):
        # numpy knows no bfloat16.
        result = result.float() if result.is_floating_point() else result
    # Away from memory that the next call writes.
    return np.array(result)


def said(error: Exception) -> str:
    """The first line of an error, with what to do about a missing package."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed; `make peers` does that"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}".rstrip(".")


def forbid_amx() -> None:
    """Have the system refuse AMX's tiles to this process, as a machine without AMX does: every engine then goes without."""
    libc = ctypes.CDLL(None, use_errno=True)
    arch_prctl, request_tiles = 158, 0x1023
    load, equal, give, allow, refuse = 0x20, 0x15, 0x06, 0x7FFF0000, 0x00050001
    program = b"".join(
        struct.pack("HBBI", *step)
        for step in (
            (load, 0, 0, 0),  # the call's number
            (equal, 0, 3, arch_prctl),
            (load, 0, 0, 16),  # its first argument
            (equal, 0, 1, request_tiles),
            (give, 0, 0, refuse),
            (give, 0, 0, allow),
        )
    )
    code = ctypes.create_string_buffer(program)
    described = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    no_new_privileges, set_filter, filter_mode = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(set_filter, filter_mode, described, 0, 0):
        raise OSError(ctypes.get_errno(), "the system takes no filter of calls, so AMX cannot be forbidden")


if __name__ == "__main__":
    sys.exit(main())
