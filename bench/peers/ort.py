"""onnxruntime: its own operators on uint8 activations and int8 weights, inputs and outputs bound, one session a case."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from bench.peers.cached import kept, model_of, onnx_file
from bench.peers.crew import Built, in_turn

ort.set_default_logger_severity(3)


def network(case: dict[str, Any], threads: int) -> Built:
    """A network quantised by onnxruntime: QDQ, per channel, calibrated on the images given."""
    model, x = model_of(case["name"]), case["x"]
    plain = onnx_file(model, case["name"], x.shape[1:])

    def quantise(path: Path) -> None:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.calibrate import CalibrationDataReader
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Images(CalibrationDataReader):
            def __init__(self) -> None:
                self.left = list(case["images"])

            def get_next(self) -> dict[str, np.ndarray] | None:
                return {"x": self.left.pop()[None]} if self.left else None

        prepared = path.with_suffix(".prepared")
        quant_pre_process(str(plain), str(prepared))
        quantize_static(
            str(prepared),
            str(path),
            Images(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
        prepared.unlink()

    made = kept(model, case["name"], f"onnxruntime {ort.__version__}", ".qdq.onnx", quantise)
    return bound(str(made), {"x": x}, threads)


def gemm_s8(case: dict[str, Any], threads: int) -> Built:
    """QGemm, which is what QDQ graphs of a linear layer become; its bias is in int32, so a code may differ by one."""
    names = ("x_scale", "x_zero", "weight", "w_scale", "w_zero", "bias", "y_scale", "y_zero")
    node = onnx.helper.make_node(
        "QGemm", ["x", *names], ["y"], domain="com.microsoft", transA=0, transB=1, alpha=1.0
    )
    shapes = case["x"].shape, (len(case["x"]), len(case["bias"]))
    return bound(of_one(node, _constants(case), *shapes), {"x": case["x"]}, threads)


def conv_s8(case: dict[str, Any], threads: int) -> Built:
    """QLinearConv on channels_last codes, as its optimiser writes it; its bias is in int32, so a code may differ by one."""
    names = ("x_scale", "x_zero", "weight", "w_scale", "w_zero", "y_scale", "y_zero", "bias")
    node = onnx.helper.make_node(
        "QLinearConv",
        ["x", *names],
        ["y"],
        domain="com.microsoft",
        channels_last=1,
        strides=case["stride"],
        dilations=case["dilation"],
        group=case["groups"],
        pads=(*case["before"], *case["after"]),
        kernel_shape=case["weight"].shape[2:],
    )
    shapes = case["x"].shape, (1, None, None, len(case["bias"]))
    return bound(of_one(node, _constants(case), *shapes), {"x": case["x"]}, threads)


def gemm_w4a8(case: dict[str, Any], threads: int) -> Built:
    """MatMulNBits at accuracy level 4, which quantises activations to int8 in blocks."""
    codes, scale = (case["codes"] + 8).astype(np.uint8), case["scale"]
    outputs, length = codes.shape
    block = case["group"] or length
    packed = (codes[:, 0::2] | codes[:, 1::2] << 4).reshape(outputs, length // block, block // 2)
    node = onnx.helper.make_node(
        "MatMulNBits",
        ["x", "packed", "scale"],
        ["y"],
        domain="com.microsoft",
        K=length,
        N=outputs,
        bits=4,
        block_size=block,
        accuracy_level=4,
    )
    shapes = case["x"].shape, (len(case["x"]), outputs)
    constants = {"packed": packed, "scale": scale.reshape(-1)}
    model = of_one(node, constants, *shapes, dtype=onnx.TensorProto.FLOAT)
    calls = [bound(model, {"x": case["x"]}, threads) for _ in range(case["copies"])]
    return in_turn(calls)


def _constants(case: dict[str, Any]) -> dict[str, Any]:
    return {
        "x_scale": np.float32(1),
        "x_zero": np.uint8(case["x_zero"]),
        "weight": case["weight"],
        "w_scale": case["multiplier"],
        "w_zero": np.zeros(len(case["weight"]), dtype=np.int8),
        "bias": np.rint(case["bias"] / case["multiplier"]).astype(np.int32),
        "y_scale": np.float32(1),
        "y_zero": np.uint8(case["y_zero"]),
    }


def of_one(
    node: onnx.NodeProto,
    constants: dict[str, Any],
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
    dtype: int = onnx.TensorProto.UINT8,
) -> bytes:
    """A model of one node from ``x`` to ``y``."""
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [onnx.helper.make_tensor_value_info("x", dtype, inputs)],
        [onnx.helper.make_tensor_value_info("y", dtype, outputs)],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    sets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    return onnx.helper.make_model(graph, opset_imports=sets, ir_version=9).SerializeToString()


def bound(model: str | bytes, inputs: dict[str, np.ndarray], threads: int) -> Built:
    """A call of a model on arrays that stay where they are."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    session.run_with_iobinding(_to_any(session, binding))
    # The first run says how large the output is; from then on it is written to the same place.
    place = binding.get_outputs()[0]
    output = session.get_outputs()[0].name
    binding.bind_ortvalue_output(output, place)

    return partial(session.run_with_iobinding, binding), place.numpy


def _to_any(session: ort.InferenceSession, binding: Any) -> Any:
    binding.bind_output(session.get_outputs()[0].name)
    return binding
