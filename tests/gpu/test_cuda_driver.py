"""The launch path against a libcuda that writes down what it is asked, and fails where it is told to."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from pyquant.errors import BackendError
from pyquant.ops import cuda_driver
from pyquant.ops.cuda_driver import Driver
from tests.gpu.fake_driver import COMPILER, FakeDriver, OnDevice, image

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler to build the fake libcuda with")
GRID, BLOCK = (7, 2, 1), (128, 1, 1)
LOAD = [
    "cuModuleLoadData", "cuModuleGetFunction", "cuFuncGetAttribute", "cuFuncGetAttribute",
]  # fmt: skip


@pytest.fixture
def fake(tmp_path: Path) -> FakeDriver:
    return FakeDriver(tmp_path)


@pytest.fixture
def two(tmp_path: Path) -> FakeDriver:
    """Two devices, the second of another kind."""
    fake = FakeDriver(tmp_path, devices=2)
    fake.library.fake_device(1, 90, 232448)
    return fake


def launch(driver: Driver, device: int = 0, **changed: object) -> None:
    x, y = torch.zeros(8), torch.zeros(8)
    call = {
        "kernel": driver.kernel("scale_rows", device),
        "grid": GRID,
        "block": BLOCK,
        "shared_bytes": 0,
        "stream": 0,
        "arguments": {"x": OnDevice(x, device), "y": OnDevice(y, device), "rows": 5, "factor": 0.5},
    }
    driver.launch(**{**call, **changed})


# ------------------------------------------------------------------------------------------------ what is called
def test_nothing_is_opened_before_it_is_asked_for() -> None:
    code = "import pyquant.ops.cuda_driver as d, sys; sys.exit(len(d._opened))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


def test_the_order_of_calls(fake: FakeDriver) -> None:
    driver = fake.open()
    assert [line["call"] for line in fake.calls] == ["cuInit", "cuDriverGetVersion", "cuDeviceGetCount"]
    assert (driver.version, driver.devices) == (13000, 1)
    launch(driver)
    calls = [line["call"] for line in fake.calls]
    assert [call for call in calls if call in LOAD] == LOAD
    inside, pushed = [], 0
    for call in calls:
        pushed += (call == "cuCtxPushCurrent_v2") - (call == "cuCtxPopCurrent_v2")
        if pushed:
            inside.append(call)
    assert {*LOAD, "cuLaunchKernel"} <= set(inside) and pushed == 0
    assert calls[-3:] == ["cuCtxPushCurrent_v2", "cuLaunchKernel", "cuCtxPopCurrent_v2"]
    assert all(line["result"] == 0 for line in fake.calls)


def test_the_argument_block(fake: FakeDriver) -> None:
    driver, x = fake.open(), OnDevice(torch.zeros(4))
    arguments = {"x": x, "y": None, "rows": -7, "factor": 0.1}
    launch(driver, arguments=arguments, stream=0x7F0012345678, shared_bytes=4096)
    (line,) = fake.named("cuLaunchKernel")
    want = [struct.pack("<Q", x.data_ptr()), bytes(8), struct.pack("<i", -7), struct.pack("<f", 0.1)]
    assert line["arguments"] == [item.hex() for item in want]
    assert (line["entry"], line["device"], line["shared"]) == ("scale_rows", 0, 4096)
    assert (line["grid"], line["block"], line["stream"]) == ([*GRID], [*BLOCK], 0x7F0012345678)


def test_what_is_known_of_a_kernel(two: FakeDriver) -> None:
    kernel = two.open().kernel("other", 1)
    assert (kernel.entry, kernel.device, kernel.architecture) == ("other", 1, "sm_90")
    assert (kernel.max_threads, kernel.static_shared, kernel.shared_limit) == (256, 1024, 232448)


def test_code_is_loaded_once_a_device(two: FakeDriver) -> None:
    driver = two.open()
    for device in (0, 1, 0, 1):
        launch(driver, device)
    driver.kernel("other", 1)
    assert [line["device"] for line in two.named("cuModuleLoadData")] == [0, 1]
    assert [line["name"] for line in two.named("cuModuleGetFunction")] == [
        "scale_rows",
        "scale_rows",
        "other",
    ]
    assert [line["device"] for line in two.named("cuDevicePrimaryCtxRetain")] == [0, 1]
    assert [line["device"] for line in two.named("cuLaunchKernel")] == [0, 1, 0, 1]


def test_much_shared_memory_is_asked_for_first_and_never_given_back(fake: FakeDriver) -> None:
    driver = fake.open()
    for size in (48 << 10, 100_000, 60_000, 120_000):
        launch(driver, shared_bytes=size)
    assert [line["value"] for line in fake.named("cuFuncSetAttribute")] == [100_000, 120_000]
    assert len(fake.named("cuLaunchKernel")) == 4 and all(line["result"] == 0 for line in fake.calls)


def test_code_is_loaded_in_the_midst_of_a_capture(fake: FakeDriver) -> None:
    driver = fake.open()
    fake.library.fake_capture(1)
    launch(driver)
    modes = [line["mode"] for line in fake.named("cuThreadExchangeStreamCaptureMode")]
    assert modes == [2, 0, 2, 0]


def test_threads_and_devices_at_once(two: FakeDriver) -> None:
    driver, start, failures = two.open(), threading.Barrier(8), []

    def work(number: int) -> None:
        start.wait()
        try:
            for _ in range(20):
                launch(driver, number % 2, shared_bytes=50_000)
        except BackendError as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == [] and all(line["result"] == 0 for line in two.calls)
    launches = two.named("cuLaunchKernel")
    assert len(launches) == 160 and sum(line["device"] for line in launches) == 80
    assert len({line["thread"] for line in launches}) == 8
    for call in ("cuModuleLoadData", "cuModuleGetFunction", "cuDevicePrimaryCtxRetain", "cuFuncSetAttribute"):
        assert len(two.named(call)) == 2, call


def test_a_thread_keeps_its_own_context(two: FakeDriver) -> None:
    driver = two.open()
    with driver._current(1):
        launch(driver, 0)
        assert two.library.fake_depth() == 1
        two.fail("cuLaunchKernel", 1)
        with pytest.raises(BackendError):
            launch(driver, 0)
        assert two.library.fake_depth() == 1
    assert two.library.fake_depth() == 0


# --------------------------------------------------------------------------------------------------- what goes wrong
FAILURES = [
    ("cuLaunchKernel", 2, r"cuda:0 has no memory left for scale_rows \(cuLaunchKernel: CUDA_ERROR_OUT_OF_MEMORY\)"),
    ("cuModuleLoadData", 2, r"cuda:0 has no memory left for the CUDA kernels"),
    ("cuDevicePrimaryCtxRetain", 2, r"cuda:0 has no memory left for the CUDA kernels"),
    ("cuModuleLoadData", 222, r"driver, of CUDA 13\.0, cannot load .* newer CUDA built \(CUDA_ERROR_UNSUPPORTED_PTX_VERSION\)"),
    ("cuModuleLoadData", 200, r"driver, of CUDA 13\.0, cannot load .*\(CUDA_ERROR_INVALID_IMAGE\); update the driver"),
    ("cuModuleLoadData", 209, r"no code for cuda:0, sm_80 \(CUDA_ERROR_NO_BINARY_FOR_GPU\); use backend='triton'"),
    ("cuModuleGetFunction", 209, r"no code for cuda:0, sm_80"),
    ("cuModuleGetFunction", 500, r"pyquant_cuda\.fatbin has no kernel scale_rows; build it anew"),
    ("cuLaunchKernel", 701, r"scale_rows needs more registers or shared memory than cuda:0 has .*use backend='triton'"),
    ("cuLaunchKernel", 700, r"cuda:0 serves this process no more, .*\(CUDA_ERROR_ILLEGAL_ADDRESS\); start the process anew"),
    ("cuCtxPushCurrent_v2", 201, r"cuCtxPushCurrent_v2 failed on cuda:0 with CUDA_ERROR_INVALID_CONTEXT"),
    ("cuLaunchKernel", 987, r"scale_rows: the NVIDIA driver's cuLaunchKernel failed on cuda:0 with CUresult 987"),
    ("cuFuncGetAttribute", 1, r"cuFuncGetAttribute failed on cuda:0 with CUDA_ERROR_INVALID_VALUE"),
    ("cuDeviceGet", 1, r"cuDeviceGet failed on the GPU with CUDA_ERROR_INVALID_VALUE"),
    ("cuThreadExchangeStreamCaptureMode", 1, r"cuThreadExchangeStreamCaptureMode failed"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "result", "sentence"), FAILURES)
def test_a_failed_call_is_one_sentence_and_not_the_end(
    fake: FakeDriver, call: str, result: int, sentence: str
) -> None:
    driver = fake.open()
    fake.fail(call, result)
    with pytest.raises(BackendError, match=sentence) as caught:
        launch(driver)
    assert str(caught.value).count("\n") == 0 and str(caught.value).endswith(".")
    assert fake.library.fake_depth() == 0
    fake.fail("", 0)
    launch(driver)
    assert fake.named("cuLaunchKernel")[-1]["result"] == 0


def test_a_failed_request_for_shared_memory_is_made_again(fake: FakeDriver) -> None:
    driver = fake.open()
    fake.fail("cuFuncSetAttribute", 1)
    with pytest.raises(BackendError, match="cuFuncSetAttribute failed on cuda:0"):
        launch(driver, shared_bytes=90_000)
    fake.fail("", 0)
    launch(driver, shared_bytes=90_000)
    assert [line["result"] for line in fake.named("cuFuncSetAttribute")] == [1, 0]


@pytest.mark.parametrize(
    ("call", "result"), [("cuInit", 100), ("cuDriverGetVersion", 1), ("cuDeviceGetCount", 999)]
)
def test_a_driver_that_does_not_start(fake: FakeDriver, call: str, result: int) -> None:
    fake.fail(call, result)
    with pytest.raises(BackendError, match=f"{call} failed on the GPU"):
        fake.open()


def test_no_driver_and_one_too_old(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"no NVIDIA driver: libnothing\.so cannot be opened; install"):
        Driver("libnothing.so")
    # Some library that is no driver at all lacks its calls too.
    with pytest.raises(
        BackendError, match=r"too old, as it lacks cuInit; update it, or use backend='triton'"
    ):
        Driver("libc.so.6")


def test_devices_that_are_not_there(fake: FakeDriver) -> None:
    with pytest.raises(BackendError, match=r"no cuda:1; the NVIDIA driver sees 1 device"):
        fake.open().kernel("other", 1)


@pytest.mark.parametrize("damage", [b"", b"ELF", image()[:-1], b"\0" + image()[1:], image()[:9]])
def test_a_damaged_image_never_reaches_the_driver(fake: FakeDriver, damage: bytes) -> None:
    fake.path.write_bytes(damage)
    with pytest.raises(BackendError, match=r"pyquant_cuda\.fatbin is damaged; build it anew"):
        fake.open().load(0)
    assert fake.named("cuModuleLoadData") == []


def test_a_missing_image(fake: FakeDriver) -> None:
    fake.path.unlink()
    with pytest.raises(
        BackendError, match=r"pyquant_cuda\.fatbin is missing; reinstall .* with nvcc on PATH"
    ):
        fake.open().load(0)


def test_arguments_that_do_not_fit(two: FakeDriver) -> None:
    driver, memory = two.open(), torch.zeros(16)
    good = {"x": OnDevice(memory), "y": OnDevice(memory), "rows": 5, "factor": 0.5}
    for changed, sentence in (
        ({"x": memory}, r"scale_rows: x is on cpu and the call runs on cuda:0; move one of them\."),
        ({"y": OnDevice(memory, 1)}, r"y is on cuda:1 and the call runs on cuda:0"),
        ({"y": OnDevice(memory[1:])}, r"y begins 4 bytes past a multiple of 16, .* pass a clone"),
        ({"rows": 2**31}, r"rows=2147483648 does not fit an int32; split the batch"),
        ({"rows": -(2**31) - 1}, r"does not fit an int32"),
    ):
        with pytest.raises(BackendError, match=sentence):
            launch(driver, arguments={**good, **changed})
    assert two.named("cuLaunchKernel") == []
    launch(driver, arguments={**good, "rows": 2**31 - 1, "x": OnDevice(memory[4:])})


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"grid": (1, 65536, 1)}, r"a grid of \(1, 65536, 1\) blocks is outside"),
        ({"grid": (0, 1, 1)}, r"a grid of \(0, 1, 1\) blocks"),
        (
            {"block": (128, 3, 1)},
            r"a block of \(128, 3, 1\) threads .* cuda:0 \(sm_80\) runs it with, 1\.\.256",
        ),
        (
            {"shared_bytes": 166912 - 1023},
            r"166913 bytes of shared memory a block are more than the 166912 of cuda:0",
        ),
        ({"shared_bytes": -1}, r"bytes of shared memory"),
    ],
)
def test_launches_that_no_device_takes(fake: FakeDriver, changed: dict, sentence: str) -> None:
    driver = fake.open()
    with pytest.raises(BackendError, match=sentence):
        launch(driver, **changed)
    assert fake.named("cuLaunchKernel") == []
    launch(driver, shared_bytes=166912 - 1024, block=(64, 2, 2))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_after_the_driver_was_opened(fake: FakeDriver) -> None:
    driver = fake.open()
    launch(driver)
    kernel, reading = driver.kernel("scale_rows", 0), os.pipe()
    child = os.fork()
    if child == 0:
        said = []
        for call in (lambda: launch(driver), lambda: driver.load(0), lambda: driver.architecture(0),
                     lambda: driver.launch(kernel, GRID, BLOCK, 0, 0, {})):  # fmt: skip
            try:
                call()
            except BackendError as error:
                said.append(str(error))
        os.write(reading[1], "\n".join(said).encode())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    said = os.read(reading[0], 10_000).decode().splitlines()
    assert len(said) == 4 and len(set(said)) == 1
    assert said[0].startswith(f"this process is a fork of process {os.getpid()}") and "'spawn'" in said[0]
    launch(driver)


def test_the_driver_is_opened_once_a_process(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def open_slowly() -> Driver:
        opened.append(threading.get_ident())
        return fake.open()

    monkeypatch.setattr(cuda_driver, "_opened", [])
    monkeypatch.setattr(cuda_driver, "Driver", open_slowly)
    found = []
    workers = [threading.Thread(target=lambda: found.append(cuda_driver.driver())) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(opened) == 1 and len(found) == 6 and len(set(map(id, found))) == 1
