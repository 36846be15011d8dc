"""ResNet-20 on all 10,000 test images of Fashion-MNIST, run in integers, by recipe; calibrated on training images."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bench.record import Row
from pyquant import zoo
from pyquant.pipeline import Recipe, quantize_model
from pyquant.runtime.net import deploy

MODEL, BATCH = "resnet20", 500


def rows(threads: Sequence[int], quick: bool, peers: bool) -> Iterator[Row]:
    """Float32, then fixed bits, then a budget; quick: fixed 8 bits from 64 images, on 500 test images."""
    model, data = zoo.load(MODEL), zoo.calibration(MODEL)
    images, accepted = zoo.evaluation(MODEL)
    recipes = (Recipe.fixed(8, 8), Recipe.fixed(4, 4), Recipe.advanced(0.13))
    if quick:
        data, images, accepted, recipes = data[:64], images[:BATCH], accepted[:BATCH], recipes[:1]
    for count in threads:
        torch.set_num_threads(count)
        with torch.no_grad():
            target = torch.cat([model(batch) for batch in images.split(BATCH)])
        yield _row("fp32", "torch-eager", count, target, target, accepted)
        for recipe in recipes:
            begin = time.perf_counter()
            net = deploy(quantize_model(model, data, recipe), backend="cpu", threads=count)
            seconds = time.perf_counter() - begin
            scores = torch.cat([net(batch) for batch in images.split(BATCH)])
            share = net.sizes["weights"] / net.sizes["float_weights"]
            yield _row(recipe.name, "cpu", count, target, scores, accepted) | {
                "weight_share": share,
                "seconds": seconds,
            }


def _row(
    name: str, backend: str, threads: int, target: Tensor, scores: Tensor, accepted: list[list[int]]
) -> Row:
    return {
        "case": f"{MODEL} {name}",
        "backend": backend,
        "threads": threads,
        "top1": zoo.accuracy(scores, accepted),
        "agreement": (scores.argmax(1) == target.argmax(1)).float().mean().item(),
        "n": len(accepted),
    }
