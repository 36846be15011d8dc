"""torch's own int8 for x86: torchao's PT2E with the quantiser of Inductor's x86 backend, compiled and frozen."""

from __future__ import annotations

from typing import Any

import torch
import torch._inductor.config as inductor
import torchao.quantization.pt2e.inductor_passes.x86  # noqa: F401
import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
from torchao.quantization.pt2e import move_exported_model_to_eval
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from bench.peers.cached import model_of
from bench.peers.crew import Built


def network(case: dict[str, Any], threads: int) -> Built:
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
        # torchao's own lowering leaves quantise and dequantise to eager operators: four times slower on MobileNetV2.
        compiled = torch.compile(converted, dynamic=False)
        compiled(x)

    def call() -> torch.Tensor:
        with torch.no_grad():
            return compiled(x)

    return call, call
