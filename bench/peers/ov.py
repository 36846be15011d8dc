"""OpenVINO: models of its own operators with fake-quantise nodes, or quantised by NNCF; one request a case, tensors bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

from bench.peers.cached import kept, model_of, onnx_file
from bench.peers.crew import Built, in_turn
from bench.timing import seconds_of

# A multiplication by one would be removed before the int8 forms are looked for.
STEP = np.float32(0.5)
# What it has no int8 form for it computes in bfloat16 where it can, which is off by more than a code.
FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}
LARGEST_GROUP = 128


def network(case: dict[str, Any], threads: int) -> Built:
    """A network quantised by NNCF with its own defaults, calibrated on the images given."""
    model, x = model_of(case["name"]), case["x"]
    plain = onnx_file(model, case["name"], x.shape[1:])
    import nncf

    def quantise(path: Path) -> None:
        images = nncf.Dataset([{"x": image[None]} for image in case["images"]])
        quantised = nncf.quantize(ov.Core().read_model(plain), images, subset_size=len(case["images"]))
        ov.save_model(quantised, path, compress_to_fp16=False)

    made = kept(model, case["name"], f"openvino {ov.__version__} nncf {nncf.__version__}", ".xml", quantise)
    network = ov.Core().read_model(made)
    network.reshape({"x": list(x.shape)})
    return bound(network, [x], threads)


def gemm_s8(case: dict[str, Any], threads: int) -> Built:
    """A product of dequantised tensors, requantised: the compiler folds all of it into one int8 layer."""
    given = op.parameter(case["x"].shape, np.uint8)
    weight = op.multiply(
        op.convert(op.constant(case["weight"]), "f32"), op.constant(case["multiplier"][:, None] / STEP)
    )
    summed = op.add(op.matmul(dequantised(given, case), weight, False, True), op.constant(case["bias"][None]))
    return bound(ov.Model([requantised(summed, case)], [given]), [case["x"]], threads, FLOAT32)


def gemm_w4a8(case: dict[str, Any], threads: int) -> Built:
    """A product with compressed weights, by its defaults (bfloat16 where the machine has it) or in int8: the faster of them."""
    outputs, length = case["codes"].shape
    groups = case["scale"].shape[1]
    given = op.parameter(case["x"].shape, np.float32)
    # Two's complement, low nibble first.
    nibbles = (case["codes"] & 15).astype(np.uint8)
    packed = nibbles[:, 0::2] | nibbles[:, 1::2] << 4
    grouped = [outputs, length] if groups == 1 else [outputs, groups, length // groups]
    scale = case["scale"] if groups == 1 else case["scale"][:, :, None]

    def layer(settings: dict[str, Any]) -> Built:
        codes = op.constant(ov.Tensor(packed, grouped, ov.Type.i4))
        weight = op.multiply(op.convert(codes, "f32"), op.constant(scale))
        if groups > 1:
            weight = op.reshape(weight, op.constant([outputs, length]), False)
        model = ov.Model([op.matmul(given, weight, False, True)], [given])
        return bound(model, [case["x"]], threads, settings)

    # Only where float32 is asked for does it quantise activations, in groups of this size.
    int8 = {**FLOAT32, "DYNAMIC_QUANTIZATION_GROUP_SIZE": case["group"] or LARGEST_GROUP}
    fastest = min(({}, int8), key=lambda settings: seconds_of(layer(settings)[0], 3, "cpu"))
    return in_turn([layer(fastest) for _ in range(case["copies"])])


def conv_s8(case: dict[str, Any], threads: int) -> Built:
    """A convolution of dequantised tensors, requantised; codes come and go in channels_last, which is its own layout."""
    given = op.parameter(case["x"].shape, np.uint8)
    x = op.transpose(given, op.constant([0, 3, 1, 2]))
    codes, groups = case["weight"], case["groups"]
    window = (case["stride"], case["before"], case["after"], case["dilation"])
    scale = case["multiplier"][:, None, None, None] / STEP
    if groups > 1:
        codes, scale = (a.reshape(groups, -1, *a.shape[1:]) for a in (codes, scale))
    weight = op.multiply(op.convert(op.constant(codes), "f32"), op.constant(scale))
    convolution = op.group_convolution if groups > 1 else op.convolution
    product = convolution(fake_quantised(x, case), weight, *window)
    summed = op.add(product, op.constant(case["bias"][None, :, None, None]))
    y = op.transpose(requantised(summed, case), op.constant([0, 2, 3, 1]))
    return bound(ov.Model([y], [given]), [case["x"]], threads, FLOAT32)


def fake_quantised(codes: ov.Node, case: dict[str, Any]) -> ov.Node:
    """Activations as a fake-quantise node: after a transposition that is the only form in which it stays in int8."""
    ends = [np.float32(STEP * (edge - case["x_zero"])) for edge in (0, 255)]
    return op.fake_quantize(op.convert(codes, "f32"), np.float32(0), np.float32(255), *ends, 256)


def dequantised(codes: ov.Node, case: dict[str, Any]) -> ov.Node:
    """Activations of a step of :data:`STEP`."""
    centred = op.subtract(op.convert(codes, "f32"), op.constant(np.float32(case["x_zero"])))
    return op.multiply(centred, op.constant(STEP))


def requantised(node: ov.Node, case: dict[str, Any]) -> ov.Node:
    """Codes of a float node whose step is 1."""
    low, high = (np.float32(edge - case["y_zero"]) for edge in (0, 255))
    codes = op.fake_quantize(node, low, high, np.float32(0), np.float32(255), 256)
    return op.convert(codes, "u8")


def bound(
    model: ov.Model, inputs: list[np.ndarray], threads: int, settings: dict[str, Any] | None = None
) -> Built:
    """A call of a model on arrays that stay where they are."""
    every = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
        **(settings or {}),
    }
    request = ov.Core().compile_model(model, "CPU", every).create_infer_request()
    tensors = [ov.Tensor(array) for array in inputs]
    for index, tensor in enumerate(tensors):
        request.set_input_tensor(index, tensor)
    request.infer()
    output = request.get_output_tensor(0)

    return request.infer, lambda: output.data
