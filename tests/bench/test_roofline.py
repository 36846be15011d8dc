"""Bounds follow from two peaks, and nothing else."""

import pytest

from bench.occupancy import GFX942, MULTIPROCESSORS
from bench.roofline import DEVICES, FP16, INT4, INT8, bound_us, devices


def test_every_target_has_a_device_and_every_device_a_target():
    targets = {*MULTIPROCESSORS, GFX942}
    assert {device.target for device in DEVICES} == targets
    assert [device.name for device in devices("sm_89")] == ["RTX 4090", "L40S"]


def test_the_bound_is_the_longer_of_bytes_and_products():
    (a100,) = devices("sm_80")
    # 2 GB take a millisecond on 2.039 TB/s, 2 x 4096^3 products 220 us of 624 TOPS.
    assert bound_us(a100, 2.039e9, 0, None) == pytest.approx(1000)
    assert bound_us(a100, 1, 2 * 4096**3, INT8) == pytest.approx(220.25, rel=1e-4)
    assert bound_us(a100, 1, 2 * 4096**3, INT4) == pytest.approx(110.13, rel=1e-4)
    assert bound_us(a100, 2.039e9, 2 * 4096**3, INT8) == pytest.approx(1000)


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_peaks_double_as_codes_halve(device):
    """A digit typed wrong would show here: int8 is twice fp16, four times where float32 sums halve fp16; int4 is twice int8."""
    ratio = device.peaks[INT8] / device.peaks[FP16]
    assert min(abs(ratio / 2 - 1), abs(ratio / 4 - 1)) < 0.03
    assert (INT4 in device.peaks) == (device.target in ("sm_80", "sm_86", "sm_89"))
    if INT4 in device.peaks:
        assert device.peaks[INT4] == 2 * device.peaks[INT8]
    assert 0.8e12 < device.bandwidth <= 8e12
