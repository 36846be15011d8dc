"""The reference executor against an integer simulation written tap by tap in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyquant.ops.pack import unpack
from pyquant.runtime.execute_reference import (
    ReferenceExecutor,
    conv_weight,
    sizes,
    to_codes_layout,
    to_torch_layout,
)
from pyquant.runtime.program import Op, Program
from tests.runtime.random_program import Writer, random_conv, random_network
from tests.runtime.small_networks import inputs_of, program


def simulate(op: Op, inputs: list[np.ndarray]) -> np.ndarray:
    """One integer op on ``[B, H, W, C]`` codes, in int64 and then float32, one rounding an operation."""
    a, f32 = op.attributes, np.float32
    x = inputs[0].astype(np.int64)
    if op.kind == "lookup":
        return op.tensors["table"].numpy()[x]
    if op.kind == "flatten":
        return inputs[0].reshape(len(x), 1, 1, -1)
    if op.kind == "add":
        y = (x - a["a_zero"]).astype(f32) * f32(a["a_scale"])
        y = y + (inputs[1].astype(np.int64) - a["b_zero"]).astype(f32) * f32(a["b_scale"])
        return finish(y, a)
    windows, stride = a["kernel" if op.kind == "conv" else "window"], a["stride"]
    top, left, bottom, right = a.get("padding", (0, 0, 0, 0))
    fill = a["x_zero"] if op.kind == "conv" else -1
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)
    dilation = a.get("dilation", (1, 1))
    oh, ow = (
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip(x.shape[1:3], windows, stride, dilation, strict=True)
    )

    def tap(i: int, j: int) -> np.ndarray:
        i, j = i * dilation[0], j * dilation[1]
        return x[
            :, i : i + (oh - 1) * stride[0] + 1 : stride[0], j : j + (ow - 1) * stride[1] + 1 : stride[1]
        ]

    taps = [(i, j) for i in range(windows[0]) for j in range(windows[1])]
    if op.kind == "max_pool":
        return np.max([tap(i, j) for i, j in taps], axis=0)
    if op.kind == "avg_pool":
        return finish(sum(tap(i, j) - a["x_zero"] for i, j in taps).astype(f32) * f32(a["multiplier"]), a)
    n, groups = op.tensors["bias"].numel(), a["groups"]
    inner = x.shape[3] // groups
    weight = (
        unpack(op.tensors["weight"], a["weight_bits"], a["weight_signed"], len(taps) * inner)
        .numpy()
        .astype(np.int64)
    )
    if "weight_zero" in op.tensors:
        weight = weight - op.tensors["weight_zero"].numpy()[:, None]
    acc = np.zeros((len(x), oh, ow, n), dtype=np.int64)
    for row in range(n):
        group = row // (n // groups)
        for t, (i, j) in enumerate(taps):
            for c in range(inner):
                acc[..., row] += (tap(i, j)[..., group * inner + c] - a["x_zero"]) * weight[
                    row, t * inner + c
                ]
    y = acc.astype(f32) * op.tensors["multiplier"].numpy() + op.tensors["bias"].numpy()
    if "y_zero" not in a:
        return y
    if len(inputs) == 2:
        y = y + (inputs[1].astype(np.int64) - a["residual_zero"]).astype(f32) * f32(a["residual_scale"])
    return finish(y, a)


def finish(y: np.ndarray, a: dict) -> np.ndarray:
    return np.clip(np.round(y) + a["y_zero"], a["low"], a["high"]).astype(np.uint8)


def check_trace(given: Program, inputs: list[torch.Tensor]) -> set[str]:
    """Compare every integer op of a run; returns the kinds seen."""
    trace = ReferenceExecutor(given).trace(*inputs)
    seen = set()
    for op in given.ops:
        if op.kind in ("aten", "quantize", "dequantize"):
            continue
        want = simulate(op, [trace[name].numpy() for name in op.inputs])
        got = trace[op.output]
        if given.values[op.output].kind == "float":
            want = to_torch_layout(torch.from_numpy(want), given.values[op.output].shape).numpy()
        assert np.array_equal(got.numpy(), want), (op.name, op.kind)
        assert tuple(got.shape[1:]) == given.values[op.output].shape
        seen.add(op.kind)
    return seen


def test_random_convolutions_match_the_simulation() -> None:
    for seed in range(12):
        check_trace(*random_conv(seed))


def test_random_networks_match_the_simulation() -> None:
    seen = set()
    for seed in range(3):
        seen |= check_trace(*random_network(seed))
    assert seen >= {"conv", "avg_pool", "max_pool", "flatten"}


@pytest.mark.parametrize(
    "case", ["residual_blocks-w4a4", "pools_then_linear-asymmetric", "early_clamps-w8a8"]
)
def test_small_networks_match_the_simulation(case: str) -> None:
    check_trace(program(case), list(inputs_of(case, 2)))


def test_quantize_rounds_half_to_even_and_takes_nan_as_zero() -> None:
    writer = Writer(0)
    x = writer.float_input(2, 2, 2)
    op = Op("quantize", "q", (x,), "codes", {"scale": 0.5, "zero_point": 7, "low": 2, "high": 200}, {})
    values = {**writer.values, "codes": writer.values[x].__class__("codes", (2, 2, 2))}
    given = Program(values, (op,), (x,), ("codes",))
    batch = torch.tensor([[[[0.25, 0.75], [-0.25, 1.0]], [[float("nan"), 1e9], [-1e9, float("inf")]]]])
    (codes,) = ReferenceExecutor(given)(batch)
    assert codes[0, :, :, 0].tolist() == [[7, 9], [7, 9]]
    assert codes[0, :, :, 1].tolist() == [[7, 200], [2, 200]]


@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 5), (5,)])
def test_layouts_are_inverse(shape: tuple[int, ...]) -> None:
    x = torch.arange(2 * torch.Size(shape).numel()).reshape(2, *shape)
    codes = to_codes_layout(x)
    assert codes.shape == (
        2,
        *(shape[1:] + shape[:1] if len(shape) == 3 else (1,) * (3 - len(shape)) + shape),
    )
    assert torch.equal(to_torch_layout(codes, shape), x)


@pytest.mark.parametrize("case", ["residual_blocks-w8a8", "tokens-w8a8", "split-w8a8"])
def test_a_sample_does_not_see_its_batch(case: str) -> None:
    executor = ReferenceExecutor(program(case))
    together = executor(*inputs_of(case, 5))
    for i in range(5):
        alone = executor(*(x[i : i + 1] for x in inputs_of(case, 5)))
        for a, b in zip(alone, together, strict=True):
            # Integers do not see it; a float node of torch may pick another order of sums.
            exact = all(op.kind != "aten" for op in program(case).ops)
            assert torch.equal(a[0], b[i]) if exact else torch.allclose(a[0], b[i], rtol=0, atol=1e-1)


def test_weights_are_those_that_were_packed() -> None:
    given = program("conv_bn_relu_chain-w235")
    convs = [op for op in given.ops if op.kind == "conv"]
    assert [tuple(conv_weight(op, given).shape) for op in convs] == [
        (8, 3, 3, 3),
        (13, 8, 3, 3),
        (5, 13, 1, 1),
    ]
    assert [
        int(conv_weight(op, given).min()) >= -(1 << (b - 1)) for op, b in zip(convs, (2, 3, 5), strict=True)
    ] == [True] * 3


def test_sizes_are_bytes_of_tensors() -> None:
    given = program("conv_bn_relu_chain-w235")
    words = 8 * 2 + 13 * 7 + 5 * 3  # rows times words: 27 * 2, 72 * 3 and 13 * 5 bits
    assert sizes(given) == {"weights": 4 * words, "total": 4 * words + 8 * (8 + 13 + 5)}
