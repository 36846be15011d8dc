"""XNNPACK, through LiteRT: a model of one fully connected layer, written with LiteRT's own schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

TYPES = {np.dtype(np.int8): 9, np.dtype(np.int32): 2, np.dtype(np.float32): 0}


def gemm_s8(case: dict[str, Any], threads: int) -> Callable[[], np.ndarray]:
    """int8 in and out; the codes of both sides move by 128, and the bias is in int32, so a code may differ by one."""
    bias = np.rint(case["bias"] / case["multiplier"]).astype(np.int32)
    x = (case["x"] ^ 0x80).view(np.int8)
    model = FullyConnected()
    model.tensor("x", x.shape, np.int8, scale=[1.0], zero=[case["x_zero"] - 128])
    model.tensor("weight", case["weight"].shape, np.int8, case["weight"], scale=case["multiplier"])
    model.tensor("bias", bias.shape, np.int32, bias, scale=case["multiplier"])
    model.tensor("y", (len(x), len(bias)), np.int8, scale=[1.0], zero=[case["y_zero"] - 128])
    run = model.call(x, threads)
    return lambda: run().view(np.uint8) ^ 0x80


class FullyConnected:
    """A LiteRT model of one fully connected layer: tensors x, weight, bias and y, added in that order."""

    def __init__(self) -> None:
        self._tensors: list[Any] = []
        self._buffers = [schema.BufferT()]

    def tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: Any,
        data: np.ndarray | None = None,
        scale: Any = None,
        zero: list[int] | None = None,
    ) -> None:
        """Add a tensor: constant if it has ``data``, quantised if it has a ``scale``; many scales are one a row."""
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name, list(shape), TYPES[np.dtype(dtype)]
        if scale is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = [float(s) for s in scale]
            tensor.quantization.zeroPoint = zero or [0] * len(scale)
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
            tensor.buffer = len(self._buffers)
            self._buffers.append(buffer)
        self._tensors.append(tensor)

    def call(self, x: np.ndarray, threads: int) -> Callable[[], np.ndarray]:
        """The call of the finished model; its input stays where it is."""
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
        # The version that knows one scale a row.
        code.version = 12
        operator = schema.OperatorT()
        operator.inputs, operator.outputs = [0, 1, 2], [3]
        operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
        operator.builtinOptions = schema.FullyConnectedOptionsT()
        graph = schema.SubGraphT()
        graph.tensors, graph.inputs, graph.outputs, graph.operators = self._tensors, [0], [3], [operator]
        model = schema.ModelT()
        model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], self._buffers
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), b"TFL3")
        interpreter = Interpreter(model_content=bytes(builder.Output()), num_threads=threads)
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
        result = interpreter.tensor(interpreter.get_output_details()[0]["index"])

        def run() -> np.ndarray:
            interpreter.invoke()
            return np.array(result())

        return run
