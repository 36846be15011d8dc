"""Lower bounds on the time of a kernel, from published peaks of named GPUs. A bound is no prediction, and nothing here was measured.

No kernel can be done before its bytes have crossed the memory bus once, nor before the tensor cores have done its products; that
is all a bound says. Caches between calls would beat it, as would a chip that runs above its published boost clock.
"""

from __future__ import annotations

from dataclasses import dataclass

INT4, INT8, FP16 = "int4", "int8", "fp16"


@dataclass(frozen=True)
class Device:
    """Published peaks of one GPU.

    Args:
        name: what it is sold as.
        target: the architecture that its kernels are compiled for.
        processors: multiprocessors.
        bandwidth: bytes a second.
        peaks: what is multiplied -> dense tensor-core operations a second, a multiply-add being two; sums in int32 or float32.
    """

    name: str
    target: str
    processors: int
    bandwidth: float
    peaks: dict[str, float]


DEVICES = (
    # "NVIDIA A100 Tensor Core GPU" datasheet, 80 GB SXM; int4 of the Ampere architecture whitepaper.
    Device("A100", "sm_80", 108, 2.039e12, {INT4: 1248e12, INT8: 624e12, FP16: 312e12}),
    # "NVIDIA Ampere GA102 GPU Architecture" whitepaper.
    Device("RTX 3090", "sm_86", 82, 0.936e12, {INT4: 568e12, INT8: 284e12, FP16: 71e12}),
    # "NVIDIA Ada GPU Architecture" whitepaper.
    Device("RTX 4090", "sm_89", 128, 1.008e12, {INT4: 1321.2e12, INT8: 660.6e12, FP16: 165.2e12}),
    # "NVIDIA L40S" datasheet; for int4, twice its int8 as on every other Ada chip, though the datasheet has it no faster.
    Device("L40S", "sm_89", 142, 0.864e12, {INT4: 1466e12, INT8: 733e12, FP16: 362e12}),
    # "NVIDIA H100 Tensor Core GPU" datasheet, SXM, without sparsity.
    Device("H100", "sm_90", 132, 3.35e12, {INT8: 1979e12, FP16: 989.4e12}),
    # "NVIDIA HGX" datasheet, B200, one of eight GPUs, without sparsity.
    Device("B200", "sm_100", 148, 8e12, {INT8: 4500e12, FP16: 2250e12}),
    # "NVIDIA RTX Blackwell GPU Architecture" whitepaper.
    Device("RTX 5090", "sm_120", 170, 1.792e12, {INT8: 838e12, FP16: 209.5e12}),
    # "AMD Instinct MI300X Accelerator" datasheet, without sparsity.
    Device("MI300X", "gfx942", 304, 5.3e12, {INT8: 2614.9e12, FP16: 1307.4e12}),
)


def bound_us(device: Device, traffic: float, operations: float, kind: str | None) -> float:
    """Microseconds that no kernel can beat on a device: those of its bytes or those of its products, whichever are more.

    Args:
        traffic: bytes that have to be read and written once.
        operations: of tensor cores; a multiply-add is two.
        kind: a key of the device's peaks; None where nothing is multiplied there.
    """
    seconds = traffic / device.bandwidth
    if kind is not None:
        seconds = max(seconds, operations / device.peaks[kind])
    return seconds * 1e6


def devices(target: str) -> list[Device]:
    """The named GPUs of an architecture."""
    return [device for device in DEVICES if device.target == target]
