"""The way to a GPU: NVIDIA's driver library by ctypes. Load the prebuilt kernels, find one, launch it.

Neither torch's C++ headers nor the CUDA runtime take part, so nothing here is compiled for a torch, and a machine without a GPU
imports it too: the library is opened at the first use. Kernels run in a device's primary context, which is torch's own, on the
stream that is given, so they are ordered with torch's kernels and captured in its graphs.

Each call pushes the context and takes it off again: what a thread had current, it keeps. The kernels' image is loaded once a device,
under a lock; where a graph is being captured meanwhile, the thread's capture is relaxed for as long as the load takes. Every
failure is a :class:`~pyquant.errors.BackendError` of one sentence.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyquant.errors import BackendError

LIBRARY = "libcuda.so.1"
# What setup.py builds of csrc/cuda where it finds nvcc.
IMAGE = Path(__file__).resolve().parents[1] / "pyquant_cuda.fatbin"
# The kernels read and write 16 bytes at a time.
ALIGNMENT = 16
INSTEAD = "backend='triton' or backend='reference'"
# A launch gets this much dynamic shared memory without asking for more.
_PLAIN_SHARED = 48 << 10
_GRID_LIMITS = (2**31 - 1, 65535, 65535)
_FATBIN = b"\x50\xed\x55\xba"
_RELAXED = 2
# Attributes by their numbers in cuda.h.
_MAJOR, _MINOR, _SHARED_OPTIN = 75, 76, 97
_MAX_THREADS, _STATIC_SHARED, _DYNAMIC_SHARED = 0, 1, 8
OUT_OF_MEMORY, INVALID_IMAGE, NO_BINARY, UNSUPPORTED_PTX, NOT_FOUND = 2, 200, 209, 222, 500
OUT_OF_RESOURCES = 701
# Errors after which a context serves no more calls.
_LOST = frozenset({214, 220, 700, 709, 710, 714, 715, 716, 717, 718, 719})

_int, _handle = POINTER(c_int), POINTER(c_void_p)
SIGNATURES: Mapping[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (_int,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (_int,),
    "cuDeviceGet": (_int, c_int),
    "cuDeviceGetAttribute": (_int, c_int, c_int),
    "cuDevicePrimaryCtxRetain": (_handle, c_int),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (_handle,),
    "cuThreadExchangeStreamCaptureMode": (_int,),
    "cuModuleLoadData": (_handle, c_char_p),
    "cuModuleGetFunction": (_handle, c_void_p, c_char_p),
    "cuFuncGetAttribute": (_int, c_int, c_void_p),
    "cuFuncSetAttribute": (c_void_p, c_int, c_int),
    "cuLaunchKernel": (c_void_p, *(c_uint,) * 7, c_void_p, _handle, _handle),
}


@dataclass(frozen=True)
class Kernel:
    """One function of the image on one device.

    Args:
        entry: its name in the image.
        device: the device's number, torch's own.
        architecture: of the device, such as ``"sm_90"``.
        function: the driver's handle.
        max_threads: the most threads a block of it may have.
        static_shared: bytes of shared memory that it declares itself.
        shared_limit: bytes of shared memory that a block may have on the device.
    """

    entry: str
    device: int
    architecture: str
    function: int
    max_threads: int
    static_shared: int
    shared_limit: int


class Driver:
    """NVIDIA's driver, opened by this process.

    Args:
        library: name or path of the library.
        image: the file that holds the kernels.

    Raises:
        BackendError: there is no such library, it is too old to be called, or it finds no device.
    """

    def __init__(self, library: str | Path = LIBRARY, image: Path = IMAGE) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._image_path, self._image = image, b""
        self._contexts: dict[int, int] = {}
        self._modules: dict[int, int] = {}
        self._kernels: dict[tuple[str, int], Kernel] = {}
        self._shared: dict[tuple[str, int], int] = {}
        try:
            self._library = ctypes.CDLL(str(library))
        except OSError:
            raise BackendError(
                f"there is no NVIDIA driver: {library} cannot be opened; install the driver, or use backend='cpu'."
            ) from None
        for name, arguments in SIGNATURES.items():
            if not hasattr(self._library, name):
                raise BackendError(
                    f"the NVIDIA driver is too old, as it lacks {name}; update it, or use {INSTEAD}."
                )
            getattr(self._library, name).argtypes = arguments
        self._call("cuInit", 0)
        self.version = self._number("cuDriverGetVersion")
        self.devices = self._number("cuDeviceGetCount")

    # ------------------------------------------------------------------------------------------- devices
    def architecture(self, device: int) -> str:
        """A device's architecture, such as ``"sm_90"``."""
        return f"sm_{self._attribute(_MAJOR, device)}{self._attribute(_MINOR, device)}"

    def shared_limit(self, device: int) -> int:
        """Bytes of shared memory that a block may have on a device."""
        return self._attribute(_SHARED_OPTIN, device)

    def _attribute(self, attribute: int, device: int) -> int:
        self._check_process()
        if not 0 <= device < self.devices:
            raise BackendError(
                f"there is no cuda:{device}; the NVIDIA driver sees {self.devices} device(s), counted from 0."
            )
        return self._number("cuDeviceGetAttribute", attribute, self._number("cuDeviceGet", device))

    @contextmanager
    def _current(self, device: int) -> Iterator[None]:
        """The device's primary context, current in this thread meanwhile."""
        with self._lock:
            if device not in self._contexts:
                context = c_void_p()
                number = self._number("cuDeviceGet", device)
                self._call("cuDevicePrimaryCtxRetain", byref(context), number, where=device)
                self._contexts[device] = context.value or 0
        self._call("cuCtxPushCurrent_v2", self._contexts[device], where=device)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent_v2", byref(c_void_p()), where=device)

    # ------------------------------------------------------------------------------------------- kernels
    def load(self, device: int) -> None:
        """Load the image on a device, if it is not there yet; before the first capture of a graph, best.

        Raises:
            BackendError: the image is missing or damaged, or has no code that the device or its driver takes.
        """
        self._check_process()
        with self._lock:
            if device not in self._modules:
                architecture = self.architecture(device)
                self._image = self._image or _read(self._image_path)
                with self._current(device), self._uncaptured():
                    module = c_void_p()
                    self._call(
                        "cuModuleLoadData",
                        byref(module),
                        self._image,
                        where=device,
                        architecture=architecture,
                    )
                    self._modules[device] = module.value or 0

    def kernel(self, entry: str, device: int) -> Kernel:
        """The kernel of this name on a device, loaded.

        Raises:
            BackendError: as of :meth:`load`, or the image has no such kernel.
        """
        self._check_process()
        found = self._kernels.get((entry, device))
        if found is not None:
            return found
        with self._lock:
            # Another thread may have asked for it meanwhile.
            if (entry, device) in self._kernels:
                return self._kernels[entry, device]
            self.load(device)
            architecture = self.architecture(device)
            with self._current(device), self._uncaptured():
                function = c_void_p()
                about = {"where": device, "entry": entry, "architecture": architecture}
                self._call(
                    "cuModuleGetFunction", byref(function), self._modules[device], entry.encode(), **about
                )
                # The driver loads a function when it is first asked about it: that is now, never in a capture.
                threads = self._number("cuFuncGetAttribute", _MAX_THREADS, function, **about)
                shared = self._number("cuFuncGetAttribute", _STATIC_SHARED, function, **about)
            limit = self.shared_limit(device)
            found = Kernel(entry, device, architecture, function.value or 0, threads, shared, limit)
            self._kernels[entry, device] = found
        return found

    def launch(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared_bytes: int,
        stream: int,
        arguments: Mapping[str, Any],
    ) -> None:
        """Launch a kernel; returns once it is in the stream.

        Args:
            kernel: from :meth:`kernel`.
            grid, block: blocks of a grid and threads of a block.
            shared_bytes: dynamic shared memory of a block.
            stream: the stream's address, as ``torch.cuda.current_stream(device).cuda_stream`` gives it; 0 for the default one.
            arguments: the kernel's parameters in their order, by the names to be used in messages. A tensor is passed as its
                address, an int as an int32, a float as a float32, None as the address 0.

        Raises:
            BackendError: a tensor is on another device or not aligned to 16 bytes, a number does not fit, the launch asks for
                more than the device has, or the driver refuses it.
        """
        self._check_process()
        if not all(0 < size <= limit for size, limit in zip(grid, _GRID_LIMITS, strict=True)):
            raise BackendError(
                f"{kernel.entry}: a grid of {grid} blocks is outside 1..{_GRID_LIMITS}; split the batch."
            )
        if not 0 < block[0] * block[1] * block[2] <= kernel.max_threads:
            raise BackendError(
                f"{kernel.entry}: a block of {block} threads is outside what cuda:{kernel.device} "
                f"({kernel.architecture}) runs it with, 1..{kernel.max_threads}."
            )
        if not 0 <= shared_bytes <= kernel.shared_limit - kernel.static_shared:
            raise BackendError(
                f"{kernel.entry}: {shared_bytes + kernel.static_shared} bytes of shared memory a block are more than the "
                f"{kernel.shared_limit} of cuda:{kernel.device} ({kernel.architecture}); use {INSTEAD}."
            )
        # Kept alive to the end of the call, which copies what it points to.
        values = [_lowered(kernel, name, value) for name, value in arguments.items()]
        block_of = (c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        about = {"where": kernel.device, "entry": kernel.entry, "architecture": kernel.architecture}
        with self._current(kernel.device):
            if shared_bytes > _PLAIN_SHARED:
                self._allow_shared(kernel, shared_bytes)
            self._call(
                "cuLaunchKernel",
                kernel.function,
                *grid,
                *block,
                shared_bytes,
                stream,
                block_of,
                None,
                **about,
            )

    def _allow_shared(self, kernel: Kernel, shared_bytes: int) -> None:
        """More dynamic shared memory than a kernel gets unasked; never less again, as another thread may be about to launch."""
        with self._lock:
            key = (kernel.entry, kernel.device)
            if self._shared.get(key, 0) < shared_bytes:
                self._call(
                    "cuFuncSetAttribute",
                    *(kernel.function, _DYNAMIC_SHARED, shared_bytes),
                    **{"where": kernel.device, "entry": kernel.entry, "architecture": kernel.architecture},
                )
                self._shared[key] = shared_bytes

    @contextmanager
    def _uncaptured(self) -> Iterator[None]:
        """Let this thread load code although it, or another one, captures a graph."""
        mode = c_int(_RELAXED)
        self._call("cuThreadExchangeStreamCaptureMode", byref(mode))
        try:
            yield
        finally:
            self._call("cuThreadExchangeStreamCaptureMode", byref(mode))

    # -------------------------------------------------------------------------------------------- calling
    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise BackendError(
                f"this process is a fork of process {self._pid}, which had opened the NVIDIA driver, and a GPU cannot be used "
                "on both sides of a fork; start workers by multiprocessing's 'spawn', or use backend='cpu' in them."
            )

    def _number(self, name: str, *arguments: Any, **about: Any) -> int:
        """A call that writes an int as its first argument."""
        number = c_int()
        self._call(name, byref(number), *arguments, **about)
        return number.value

    def _call(self, name: str, *arguments: Any, **about: Any) -> None:
        self._check_process()
        result = getattr(self._library, name)(*arguments)
        if result:
            raise BackendError(self._sentence(name, result, **about))

    def _sentence(
        self,
        call: str,
        result: int,
        where: int | None = None,
        entry: str = "",
        architecture: str = "its kind",
    ) -> str:
        """What went wrong, and what would help."""
        text = c_char_p()
        self._library.cuGetErrorName(result, byref(text))
        code = text.value.decode() if text.value else f"CUresult {result}"
        subject, device = entry or "the CUDA kernels", "the GPU" if where is None else f"cuda:{where}"
        if result in _LOST:
            return (
                f"{device} serves this process no more, as a kernel that ran before {call} failed on it ({code}); "
                "start the process anew, with CUDA_LAUNCH_BLOCKING=1 to learn which."
            )
        if result == OUT_OF_MEMORY:
            return f"{device} has no memory left for {subject} ({call}: {code}); free tensors, or use smaller batches."
        if result == OUT_OF_RESOURCES:
            return (
                f"{subject} needs more registers or shared memory than {device} has ({code}); use {INSTEAD}."
            )
        if result == NO_BINARY:
            return f"the CUDA kernels hold no code for {device}, {architecture} ({code}); use {INSTEAD}."
        if result in (UNSUPPORTED_PTX, INVALID_IMAGE):
            return (
                f"the NVIDIA driver, of CUDA {self.version // 1000}.{self.version % 1000 // 10}, cannot load the CUDA kernels, "
                f"which a newer CUDA built ({code}); update the driver, or use {INSTEAD}."
            )
        if result == NOT_FOUND and call == "cuModuleGetFunction":
            return f"{self._image_path.name} has no kernel {entry}; build it anew by reinstalling pyquant-engine."
        return f"{subject}: the NVIDIA driver's {call} failed on {device} with {code}; use {INSTEAD}."


def _read(path: Path) -> bytes:
    """The image, which has to be whole: the driver trusts the length that its first bytes give."""
    if not path.is_file():
        raise BackendError(
            f"the CUDA kernels are not built, as {path.name} is missing; reinstall pyquant-engine with nvcc on PATH, "
            f"or use {INSTEAD}."
        )
    image = path.read_bytes()
    size = int.from_bytes(image[6:8], "little") + int.from_bytes(image[8:16], "little")
    if image[:4] != _FATBIN or len(image) < max(size, 16):
        raise BackendError(f"{path.name} is damaged; build it anew by reinstalling pyquant-engine.")
    return image


def _lowered(kernel: Kernel, name: str, value: Any) -> Any:
    """An argument as the driver takes it."""
    if value is None:
        return c_void_p(0)
    if isinstance(value, int):
        if not -(2**31) <= value < 2**31:
            raise BackendError(f"{kernel.entry}: {name}={value} does not fit an int32; split the batch.")
        return c_int(value)
    if isinstance(value, float):
        return c_float(value)
    if (value.device.type, value.device.index) != ("cuda", kernel.device):
        raise BackendError(
            f"{kernel.entry}: {name} is on {value.device} and the call runs on cuda:{kernel.device}; move one of them."
        )
    address = value.data_ptr()
    if address % ALIGNMENT:
        raise BackendError(
            f"{kernel.entry}: {name} begins {address % ALIGNMENT} bytes past a multiple of {ALIGNMENT}, "
            "where the kernel cannot read it; pass a clone of it."
        )
    return c_size_t(address)


_opening = threading.Lock()
_opened: list[Driver] = []


def driver() -> Driver:
    """The driver of this process, opened at the first call.

    Raises:
        BackendError: as of :class:`Driver`.
    """
    if not _opened:
        with _opening:
            if not _opened:
                _opened.append(Driver())
    return _opened[0]
