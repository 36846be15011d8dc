"""torch's own int8 for x86: torchao's PT2E with the quantiser of Inductor's x86 backend, compiled and frozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch._inductor.config as inductor
import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
from torchao.quantization.pt2e import move_exported_model_to_eval
from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from bench.peers.cached import model_of


def network(case: dict[str, Any], threads: int) -> Callable[[], np.ndarray]:
    """A network in channels_last, static, per channel, calibrated on the images given."""
    torch.set_num_threads(threads)
    torch._dynamo.reset()
    inductor.freezing = True
    inductor.cpp.threads = threads
    last = torch.channels_last
    model = model_of(case["name"]).to(memory_format=last)  # type: ignore[call-overload]
    x = torch.from_numpy(case["x"]).contiguous(memory_format=last)
    images = torch.from_numpy(case["images"])[: len(x)].contiguous(memory_format=last)
    with torch.no_grad():
        quantiser = x86.X86InductorQuantizer()
        quantiser.set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(torch.export.export(model, (x,), strict=True).module(), quantiser)
        prepared(images)
        converted = convert_pt2e(prepared)
        move_exported_model_to_eval(converted)
        compiled = lower_pt2e_quantized_to_x86(converted, (x,))
        compiled(x)

    def call() -> np.ndarray:
        with torch.no_grad():
            return compiled(x).numpy()

    return call
