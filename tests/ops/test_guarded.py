"""Every shape between guard pages: no kernel reads or writes a byte that is not the caller's, and all bytes are the formula's."""

import os

import numpy as np
import pytest
import torch

from pyquant import reference
from pyquant.ops import backend
from pyquant.ops.gemm_w4 import gemm_w4
from pyquant.ops.pack import pack
from pyquant.runtime.execute_cpu import load
from pyquant.runtime.program import Op, Program, Value
from tests.ops.guarded import PLACES, Guarded, bytes_of, walk

NATIVE = backend.extension()
ISAS = NATIVE.available_isas() if NATIVE is not None else []
pytestmark = [
    pytest.mark.skipif(NATIVE is None, reason=str(backend.missing("cpu"))),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the walk needs a child by fork"),
]
MOST = 67
POINT = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}


def requantized(acc, multiplier, bias, zero, low, high):
    """The epilogue in numpy, whose float32 operations round one by one."""
    y = acc.astype(np.float32) * multiplier + bias
    return np.clip(np.rint(y) + np.float32(zero), low, high).astype(np.uint8)


def convolution(isa, shape, weight, multiplier, bias, out_shape, residual=None, **options):
    """The engine of one convolution; ``weight`` is ``[N, KH, KW, C / groups]`` int8, ``residual`` its zero point and scale."""
    attributes = {"kernel": weight.shape[1:3], "weight_bits": 8, "weight_signed": True, **options}
    inputs, values = ("x",), {"x": Value("codes", tuple(map(int, shape))), "y": Value("codes", out_shape)}
    if residual is not None:
        attributes |= {"residual_zero": residual[0], "residual_scale": residual[1]}
        inputs, values = ("x", "r"), values | {"r": Value("codes", out_shape)}
    codes = torch.from_numpy(np.ascontiguousarray(weight)).flatten(1)
    tensors = {
        "weight": pack(codes, 8),
        "multiplier": torch.from_numpy(multiplier),
        "bias": torch.from_numpy(bias),
    }
    ops = (Op("conv", "conv", inputs, "y", attributes, tensors),)
    return load(Program(values, ops, inputs, ("y",)), ops, inputs, ("y",), isa)


# ------------------------------------------------------------------------------------------------- int8 products
def int8_products(isa, lengths, widths, heights, report):
    """Every product of ``heights`` x ``widths`` x ``lengths``; the sums over K grow from one length to the next."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (MOST, MOST), np.uint8)
    w = rng.integers(-128, 128, (MOST, MOST), np.int8)
    multiplier = rng.uniform(0.0005, 0.004, MOST).astype(np.float32)
    bias = rng.uniform(-20, 20, MOST).astype(np.float32)
    x_zero, y_zero = 117, 128
    rows, results = {p: Guarded(x.size) for p in PLACES}, {p: Guarded(x.size) for p in PLACES}
    sums = np.concatenate(
        [
            np.zeros((1, MOST, MOST), np.int64),
            np.cumsum((x.astype(np.int64) - x_zero).T[:, :, None] * w.astype(np.int64).T[:, None, :], axis=0),
        ]
    )
    for k in lengths:
        right = requantized(sums[k], multiplier, bias, y_zero, 3, 250)
        for place, room in rows.items():
            room.put(x[:, :k], place)
        for n in widths:
            wanted = np.ascontiguousarray(right[:, :n])
            for place in PLACES:
                report.at(isa, "packing", "N", n, "K", k, place)
                layer = convolution(
                    isa, (1, 1, k), w[:n, None, None, :k], multiplier[:n], bias[:n], (1, 1, n),
                    x_zero=x_zero, y_zero=y_zero, low=3, high=250, **POINT,
                )  # fmt: skip
                for m in heights:
                    # The last rows lie against the page behind, the first against the page before.
                    picked = wanted[MOST - m :] if place == "end" else wanted[:m]
                    expected = bytes_of(picked)
                    report.at(isa, "M", m, "N", n, "K", k, place)
                    source = rows[place].address + (rows[place].size - m * k if place == "end" else 0)
                    result = results[place]
                    layer.run([source], [result.expect(expected, place)], m, 1)
                    assert result.holds(expected, place), (isa, m, n, k, place)


@pytest.mark.parametrize("isa", ISAS)
def test_int8_products_thinned(isa):
    """Every width up to a panel and beyond, with heights and lengths about the tiles' edges."""
    heights, lengths = (1, 2, 5, 6, 7, 8, 13, 67), (1, 3, 4, 5, 31, 32, 33, 63, 64, 65, 67)
    assert walk(lambda report: int8_products(isa, lengths, range(1, MOST + 1), heights, report)) is None


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_int8_products_all(isa):
    every = range(1, MOST + 1)
    assert walk(lambda report: int8_products(isa, every, every, every, report)) is None


# ------------------------------------------------------------------------------------------------- 4-bit products
W4_GROUPED = [(32, 32), (96, 32), (64, 64), (192, 64), (128, 128), (384, 128), (160, 32)]
W4_RAGGED = [(k, None) for k in (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 40, 63, 65, 67, 100, 127, 131)]


def w4_products(isa, shapes, widths, heights, report):
    generator = torch.Generator().manual_seed(1)
    for k, group in shapes:
        codes = torch.randint(-8, 8, (MOST, k), generator=generator)
        groups = k // (group or k)
        scale = torch.rand(MOST, groups, generator=generator) * 0.01
        zero = torch.randint(-8, 8, (MOST, groups), generator=generator, dtype=torch.int32)
        x = torch.randint(0, 256, (MOST, k), generator=generator).to(torch.uint8)
        x_scale = torch.rand(MOST, generator=generator) * 0.1
        x_zero = torch.randint(0, 256, (MOST,), generator=generator, dtype=torch.int32)
        right = gemm_w4(
            x,
            pack(codes, 4),
            scale,
            x_scale,
            x_zero=x_zero,
            zero_point=zero,
            group_size=group,
            backend="reference",
        ).numpy()
        arrays = [pack(codes, 4).numpy(), zero.numpy(), scale.numpy()]
        given = [x.numpy(), x_zero.numpy(), x_scale.numpy()]
        rooms = [Guarded(array.nbytes) for array in arrays]
        inputs = {place: [Guarded(array.nbytes) for array in given] for place in PLACES}
        results = {place: Guarded(right.nbytes) for place in PLACES}
        for place in PLACES:
            for room, array in zip(inputs[place], given, strict=True):
                room.put(array, place)
        for n in widths:
            wanted = np.ascontiguousarray(right[:, :n])
            for place in PLACES:
                report.at(isa, "packing", "N", n, "K", k, "group", group, place)
                addresses = [room.put(a[:n], place) for room, a in zip(rooms, arrays, strict=True)]
                layer = NATIVE.LinearW4(*addresses, n, k, group or k, 4, True, isa)
                for m in heights:
                    picked = wanted[MOST - m :] if place == "end" else wanted[:m]
                    expected = bytes_of(picked)
                    report.at(isa, "M", m, "N", n, "K", k, "group", group, place)
                    sources = [
                        room.address + (room.size - m * (array.nbytes // MOST) if place == "end" else 0)
                        for room, array in zip(inputs[place], given, strict=True)
                    ]
                    layer.run_codes(*sources, 8, False, results[place].expect(expected, place), m, 1)
                    assert results[place].holds(expected, place), (isa, m, n, k, group, place)


@pytest.mark.parametrize("isa", ISAS)
def test_w4_products_thinned(isa):
    shapes, widths = [*W4_GROUPED[1:6:2], *W4_RAGGED[::3]], (1, 7, 8, 15, 16, 17, 31, 32, 33, 48, 64, 67)
    assert walk(lambda report: w4_products(isa, shapes, widths, (1, 2, 3, 4, 5, 8, 16, 67), report)) is None


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_w4_products_all(isa):
    every = range(1, MOST + 1)
    assert walk(lambda report: w4_products(isa, W4_GROUPED + W4_RAGGED, every, every, report)) is None


# --------------------------------------------------------------------------------------------------- convolutions
def geometries(count):
    """Random geometries: every kernel, stride, dilation, padding and kind of grouping, channels from 1 to 67."""
    rng = np.random.default_rng(2)
    found = 0
    while found < count:
        kernel = [int(rng.choice((1, 2, 3, 5, 7))) for _ in range(2)]
        stride, dilation = rng.integers(1, 4, 2), rng.integers(1, 3, 2)
        padding = [int(rng.integers(0, kernel[side % 2] + 1)) for side in range(4)]
        kind = rng.choice(("plain", "groups", "depthwise"))
        if kind == "plain":
            groups, per, multiple = 1, int(rng.integers(1, MOST + 1)), int(rng.integers(1, MOST + 1))
        elif kind == "groups":
            groups = int(rng.integers(2, 5))
            per, multiple = int(rng.integers(1, 17)), int(rng.integers(1, 17))
        else:
            groups, per, multiple = int(rng.integers(1, MOST + 1)), 1, int(rng.choice((1, 1, 1, 2)))
        size = rng.integers(1, 12, 2)
        out = [
            (size[a] + padding[a] + padding[a + 2] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1
            for a in range(2)
        ]
        if min(out) < 1:
            continue
        found += 1
        yield {
            "x": rng.integers(0, 256, (int(rng.integers(1, 4)), *size, groups * per), np.uint8),
            "weight": rng.integers(-128, 128, (groups * multiple, *kernel, per), np.int8),
            "out": tuple(int(v) for v in out),
            "residual": (int(rng.integers(0, 256)), float(np.float32(0.37))) if rng.random() < 0.3 else None,
            "options": {
                "stride": tuple(map(int, stride)), "padding": tuple(padding),
                "dilation": tuple(map(int, dilation)), "groups": groups,
            },
        }  # fmt: skip


def convolutions(isas, count, report):
    rng = np.random.default_rng(3)
    for number, case in enumerate(geometries(count)):
        x, weight, options, residual = case["x"], case["weight"], case["options"], case["residual"]
        n, x_zero, y_zero = len(weight), int(rng.integers(0, 256)), int(rng.integers(0, 256))
        spread = 80 * float(np.sqrt(weight[0].size)) * 73
        multiplier = (rng.uniform(0.5, 2, n) * 60 / spread).astype(np.float32)
        bias = rng.uniform(-9, 9, n).astype(np.float32)
        acc = reference.accumulate_conv(
            torch.from_numpy(x),
            x_zero,
            torch.from_numpy(weight).permute(0, 3, 1, 2),
            torch.zeros(n),
            **options,
        )
        added = rng.integers(0, 256, tuple(acc.shape), np.uint8)
        with_residual = (torch.from_numpy(added), *residual) if residual is not None else None
        right = reference.requantize(
            acc, torch.from_numpy(multiplier), torch.from_numpy(bias), y_zero, 1, 253, with_residual
        )
        expected = bytes_of(right.numpy())
        out_shape = (*case["out"], n)
        for isa in isas:
            for place in PLACES:
                report.at(isa, number, x.shape, weight.shape, options, residual, place)
                layer = convolution(
                    isa, x.shape[1:], weight, multiplier, bias, out_shape, residual,
                    x_zero=x_zero, y_zero=y_zero, low=1, high=253, **options,
                )  # fmt: skip
                held = [Guarded(a.nbytes) for a in (x, added)]
                sources = [r.put(a, place) for r, a in zip(held, (x, added), strict=True)]
                result = Guarded(expected.size)
                used = sources[: 1 if residual is None else 2]
                layer.run(used, [result.expect(expected, place)], len(x), 1)
                assert result.holds(expected, place), (isa, number)


@pytest.mark.skipif(not ISAS, reason="no kernels here")
def test_convolutions_thinned():
    assert walk(lambda report: convolutions(ISAS, 250, report)) is None


@pytest.mark.slow
@pytest.mark.skipif(not ISAS, reason="no kernels here")
def test_convolutions_all():
    assert walk(lambda report: convolutions(ISAS, 6000, report)) is None


# ------------------------------------------------------------------------------------------------- the walk itself
def test_a_fault_is_told_with_its_case():
    """A read behind the end, a write before the start, and a wrong byte are each found, and the case named."""
    room = Guarded(100)

    def beyond(report, offset):
        report.at("the", 3, offset)
        np.frombuffer((np.ctypeslib.ctypes.c_uint8 * 1).from_address(room.address + offset), np.uint8)[0] += 1

    assert walk(lambda report: beyond(report, 0)) is None
    assert walk(lambda report: beyond(report, room.size)) == f"SIGSEGV at ('the', 3, {room.size})"
    assert walk(lambda report: beyond(report, -1)) == "SIGSEGV at ('the', 3, -1)"
    expected = np.arange(10, dtype=np.uint8)
    for place in PLACES:
        room.expect(expected, place)
        assert not room.holds(expected, place)
        _, span = room.span(10, place)
        span[:] = expected
        assert room.holds(expected, place)
        address = span.ctypes.data + (-1 if place == "end" else 10)
        np.ctypeslib.ctypes.memset(address, 0, 1)
        assert not room.holds(expected, place)
