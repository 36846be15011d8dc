"""pyquant: post-training quantization. A trained PyTorch model in, a measured int8/int4 model out."""

from pyquant.diagnosis import diagnose
from pyquant.errors import PyquantError
from pyquant.grid import Grid
from pyquant.model import prepare
from pyquant.pipeline import Recipe, pareto, quantize, quantize_model
from pyquant.runtime.embed import include, library
from pyquant.runtime.net import Net, deploy, load
from pyquant.runtime.tune import tune
from pyquant.steps.adaquant import adaquant
from pyquant.steps.bias_tune import bias_tune
from pyquant.steps.bn_tune import bn_tune
from pyquant.steps.calibrate import calibrate

__all__ = [
    "Grid", "Net", "PyquantError", "Recipe", "adaquant", "bias_tune", "bn_tune", "calibrate", "deploy", "diagnose",
    "include", "library", "load", "pareto", "prepare", "quantize", "quantize_model", "tune",
]  # fmt: skip
