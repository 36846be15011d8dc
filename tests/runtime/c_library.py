"""libpyquant.so through ctypes, which knows nothing of pyquant."""

from __future__ import annotations

import ctypes
import math
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from pyquant.runtime.embed import library

OK, BAD_ARGUMENT, BAD_FILE, BAD_PROGRAM = 0, 1, 2, 3


class Description(ctypes.Structure):
    """``pq_tensor``."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_int),
        ("layout", ctypes.c_int),
        ("rank", ctypes.c_int),
        ("shape", ctypes.c_int64 * 3),
        ("elements", ctypes.c_int64),
    )

    def sizes(self) -> tuple[int, ...]:
        assert self.elements == math.prod(self.shape[: self.rank])
        return tuple(self.shape[: self.rank])


@cache
def c() -> ctypes.CDLL:
    """The library, its functions declared."""
    lib = ctypes.CDLL(library())
    text, at, index = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int
    for name, result, arguments in (
        ("pq_version", text, ()),
        ("pq_isas", text, ()),
        ("pq_last_error", text, ()),
        ("pq_load", index, (text, text, ctypes.POINTER(at))),
        ("pq_load_memory", index, (text, ctypes.c_size_t, text, ctypes.POINTER(at))),
        ("pq_free", None, (at,)),
        ("pq_isa", text, (at,)),
        ("pq_input_count", index, (at,)),
        ("pq_output_count", index, (at,)),
        ("pq_input", index, (at, index, at)),
        ("pq_output", index, (at, index, at)),
        ("pq_run", index, (at, ctypes.c_int64, at, at, index)),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


class Refused(Exception):
    """A status other than OK, with the sentence."""

    def __init__(self, status: int) -> None:
        self.status, self.sentence = status, c().pq_last_error().decode()
        super().__init__(status, self.sentence)


def check(status: int) -> None:
    if status != OK:
        raise Refused(status)


class CProgram:
    """A program loaded from a file or from bytes."""

    def __init__(self, source: Path | bytes, isa: str | None = None) -> None:
        self.handle = ctypes.c_void_p(1)
        name = None if isa is None else isa.encode()
        place = ctypes.byref(self.handle)
        if isinstance(source, bytes):
            status = c().pq_load_memory(source, len(source), name, place)
        else:
            status = c().pq_load(str(source).encode(), name, place)
        assert (status == OK) == bool(self.handle.value)
        check(status)

    def __del__(self) -> None:
        c().pq_free(self.handle)

    def inputs(self) -> list[Description]:
        return self._described(c().pq_input_count(self.handle), c().pq_input)

    def outputs(self) -> list[Description]:
        return self._described(c().pq_output_count(self.handle), c().pq_output)

    def _described(self, count: int, describe: ctypes._CFuncPtr) -> list[Description]:
        tensors = [Description() for _ in range(count)]
        for index, tensor in enumerate(tensors):
            check(describe(self.handle, index, ctypes.byref(tensor)))
        return tensors

    def __call__(self, *inputs: Tensor, threads: int = 1) -> tuple[Tensor, ...]:
        batch = inputs[0].shape[0]
        assert all(tuple(x.shape) == (batch, *d.sizes()) for x, d in zip(inputs, self.inputs(), strict=True))
        # What is left unwritten shows up.
        outputs = [
            torch.full((batch, *d.sizes()), 77, dtype=(torch.float32, torch.uint8)[d.dtype])
            for d in self.outputs()
        ]
        check(c().pq_run(self.handle, batch, addresses(inputs), addresses(outputs), threads))
        return tuple(outputs)


def addresses(tensors: tuple[Tensor, ...] | list[Tensor]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
