"""XNNPACK, through LiteRT: a model of one fully connected layer, written with LiteRT's own schema."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from bench.peers.crew import Built, in_turn

INT4 = "int4"
TYPES = {np.int8: 9, np.int32: 2, np.float32: 0, np.float16: 1, INT4: 17}
# Of FULLY_CONNECTED: the version that knows scales a row and in blocks.
VERSION = 13


def gemm_s8(case: dict[str, Any], threads: int) -> Built:
    """int8 in and out; the codes of both sides move by 128, and the bias is in int32, so a code may differ by one."""
    bias = np.rint(case["bias"] / case["multiplier"]).astype(np.int32)
    x = (case["x"] ^ 0x80).view(np.int8)
    model = FullyConnected()
    model.tensor("x", x.shape, np.int8, scale=[1.0], zero=case["x_zero"] - 128)
    model.tensor("weight", case["weight"].shape, np.int8, case["weight"], scale=case["multiplier"])
    model.tensor("bias", bias.shape, np.int32, bias, scale=case["multiplier"])
    model.tensor("y", (len(x), len(bias)), np.int8, scale=[1.0], zero=case["y_zero"] - 128)
    run, result = model.call(x, threads)
    return run, lambda: result().view(np.uint8) ^ 0x80


def gemm_w4a8(case: dict[str, Any], threads: int) -> Built:
    """float32 in and out, rows quantised by XNNPACK; scales one a row, or one a block of 32 in half precision."""
    if case["group"] not in (None, 32):
        raise NotImplementedError("it has scales per channel and in blocks of 32")
    outputs, length = case["codes"].shape
    nibbles = (case["codes"] & 15).astype(np.uint8)
    model = FullyConnected()
    model.tensor("x", case["x"].shape, np.float32)
    if case["group"] is None:
        scales: dict[str, Any] = {"scale": case["scale"][:, 0]}
    else:
        model.tensor("scales", case["scale"].shape, np.float16, case["scale"].astype(np.float16))
        scales = {"block": case["group"]}
    model.tensor("weight", (outputs, length), INT4, nibbles[:, 0::2] | nibbles[:, 1::2] << 4, **scales)
    model.tensor("y", (len(case["x"]), outputs), np.float32)
    calls = [model.call(case["x"], threads) for _ in range(case["copies"])]
    return in_turn(calls)


class FullyConnected:
    """A LiteRT model of one fully connected layer on the tensors called x, weight, bias (if there is one) and y."""

    def __init__(self) -> None:
        self._tensors: list[Any] = []
        self._index: dict[str, int] = {}
        self._buffers = [schema.BufferT()]

    def tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: Any,
        data: np.ndarray | None = None,
        scale: Sequence[float] | None = None,
        zero: int = 0,
        block: int | None = None,
    ) -> None:
        """Add a tensor.

        Args:
            name, shape: of the tensor.
            dtype: a key of :data:`TYPES`; codes of 4 bits come packed, low nibble first.
            data: makes it constant.
            scale: one step, or one a row.
            zero: the zero point.
            block: so many inputs share a scale of the tensor called scales.
        """
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name, list(shape), TYPES[dtype]
        if scale is not None or block is not None:
            tensor.quantization = schema.QuantizationParametersT()
        if scale is not None:
            tensor.quantization.scale = [float(s) for s in scale]
            tensor.quantization.zeroPoint = [zero] * len(scale)
        if block is not None:
            details = schema.BlockwiseQuantizationT()
            details.scales, details.zeroPoints, details.blockSize = self._index["scales"], -1, block
            tensor.quantization.detailsType = schema.QuantizationDetails.BlockwiseQuantization
            tensor.quantization.details = details
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
            tensor.buffer = len(self._buffers)
            self._buffers.append(buffer)
        self._index[name] = len(self._tensors)
        self._tensors.append(tensor)

    def call(self, x: np.ndarray, threads: int) -> Built:
        """The call of the finished model; its input stays where it is."""
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
        code.version = VERSION
        operator = schema.OperatorT()
        operator.inputs = [self._index.get(name, -1) for name in ("x", "weight", "bias")]
        operator.outputs = [self._index["y"]]
        operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
        operator.builtinOptions = schema.FullyConnectedOptionsT()
        graph = schema.SubGraphT()
        graph.tensors, graph.operators = self._tensors, [operator]
        graph.inputs, graph.outputs = [self._index["x"]], operator.outputs
        model = schema.ModelT()
        model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], self._buffers
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), b"TFL3")
        interpreter = Interpreter(model_content=bytes(builder.Output()), num_threads=threads)
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
        return interpreter.invoke, interpreter.tensor(interpreter.get_output_details()[0]["index"])
