"""From a picture to the input of EfficientNet-Lite0."""

import numpy as np
import torch

from pyquant.errors import MissingPackageError

try:
    from PIL import Image
except ImportError as error:
    raise MissingPackageError("pillow is not installed; run: pip install 'pillow>=10'") from error

SIDE = 224  # pixels
CROP = 0.875  # share of the shorter side that the centre crop keeps


def preprocess(picture: Image.Image) -> torch.Tensor:
    """Cut the central square of ``picture`` and scale it.

    Returns:
        ``[3, 224, 224]`` float32, ``(pixel - 127) / 128``.

    Source: evaluation in github.com/tensorflow/tpu, models/official/efficientnet/lite.
    """
    width, height = picture.size
    side = max(int(min(width, height) * CROP), 1)
    return square_input(picture.convert("RGB"), (width - side) // 2, (height - side) // 2, side)


def on_white(cut_out: Image.Image) -> Image.Image:
    """Put a picture with an alpha channel on a white square so large that `preprocess` keeps all of it."""
    cut_out = cut_out.convert("RGBA")
    side = int(max(cut_out.size) / CROP)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(cut_out, ((side - cut_out.width) // 2, (side - cut_out.height) // 2))
    return square.convert("RGB")


def square_input(picture: Image.Image, left: int, top: int, side: int) -> torch.Tensor:
    """Cut a square (``left``, ``top``, ``side`` in pixels) from an RGB picture and scale it likewise."""
    square = picture.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return torch.from_numpy((np.asarray(square, np.float32) - 127) / 128).permute(2, 0, 1).contiguous()
