"""What quantising costs: real networks run in integers on data that no calibration saw, beside nearest rounding at the same bits.

One case is one network quantised one way; a row is one metric of it on one set of data. Settings are chosen on calibration data
alone. Protocols: ``split`` and ``foreign`` as the zoo's ``images.py`` has them, ``photographs`` are crops without labels that judge
what the split calibrated, ``test`` is the whole test set of Fashion-MNIST, calibrated on training images.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache

import torch
from torch import Tensor

from bench.record import Row
from pyquant import zoo
from pyquant.fidelity import divergence
from pyquant.pipeline import RECIPES, Recipe, quantize_model
from pyquant.runtime.net import Net, deploy

BATCH, CROPS = 100, 1000
FASHION = ("resnet20", "mobilenet_v2_small")
EFFICIENTNET = "efficientnet_lite0"
NEAREST = "nearest"


@dataclass(frozen=True)
class Case:
    """One network, quantised one way.

    Attributes:
        network: of the zoo.
        method: a flow of AdaQuant with all tuning, ``nearest``, or a recipe's name where there is a budget.
        weights, inputs: bits; None where the budget's choice decides.
        budget: weight code bytes over float32 bytes, or None for fixed bits, the first and last site at 8.
        protocol: which images calibrate and judge.
        calibration_images: how many of them calibrate, mirror images counted; None for all of the protocol's.
        seed: draws them; None takes the first ones.
    """

    network: str
    method: str
    weights: int | None
    inputs: int | None
    budget: float | None = None
    protocol: str = "split"
    calibration_images: int | None = None
    seed: int | None = None

    @property
    def name(self) -> str:
        """For tables."""
        bits = f"budget {self.budget:g}" if self.budget is not None else f"W{self.weights}A{self.inputs}"
        few = "" if self.calibration_images is None else f", {self.calibration_images} to calibrate"
        drawn = "" if self.seed is None else f", seed {self.seed}"
        return f"{self.network} {bits} {self.method}, {self.protocol}{few}{drawn}"

    def recipe(self) -> Recipe:
        """As a recipe."""
        if self.budget is not None:
            return RECIPES[self.method](self.budget, input_bits=self.inputs)
        assert self.weights is not None and self.inputs is not None, "no budget and no bits"
        fixed = Recipe.fixed(self.weights, self.inputs)
        if self.method == NEAREST:
            return replace(fixed, learn=False, tune_norms=False, tune_biases=False)
        return replace(fixed, flow=self.method)


def protocol_of(network: str) -> str:
    """The protocol that a network's figures are of, first of all."""
    return "test" if network in FASHION else "split"


def cases(quick: bool) -> Iterator[Case]:
    """Those with a target; quick: 8 bits of ResNet-20 from 64 images."""
    if quick:
        yield Case("resnet20", "sequential", 8, 8, protocol="test", calibration_images=64)
        return
    for network in FASHION:
        for w, a in ((8, 8), (4, 4), (3, 3), (2, 4)):
            yield Case(network, "sequential", w, a, protocol="test")
        yield Case(network, "advanced", None, 8, 0.13, "test")
    for w, a in ((8, 8), (4, 8), (3, 8), (4, 4)):
        yield Case(EFFICIENTNET, "sequential", w, a)
    for recipe in ("light", "advanced", "relaxed"):
        yield Case(EFFICIENTNET, recipe, None, 8, 0.13)
    yield Case(EFFICIENTNET, "sequential", 4, 8, protocol="foreign")
    yield Case(EFFICIENTNET, "sequential", 4, 8, calibration_images=1)


def measure(case: Case, threads: int, quick: bool) -> Iterator[Row]:
    """Quantise, run in integers, and score; ``seconds`` are those of quantising alone."""
    torch.set_num_threads(threads)
    begin = time.perf_counter()
    net = _quantised(case, threads)
    seconds = time.perf_counter() - begin
    plain = None if case.method == NEAREST else _nearest(replace(case, method=NEAREST), threads)
    for protocol, (images, accepted) in _judged_by(case, 500 if quick else None).items():
        target = _float_scores(case.network, protocol)[: len(images)]
        ours = metrics(target, _scores(net, images), accepted)
        rounded = {} if plain is None else metrics(target, _scores(plain, images), accepted)
        exact = metrics(target, target, accepted)
        for metric, value in ours.items():
            share = metric != "kl"
            yield {
                "case": f"{replace(case, protocol=protocol).name}: {metric}",
                "backend": "cpu",
                "threads": threads,
                **asdict(case),
                "protocol": protocol,
                "calibration_images": len(_calibration(case)),
                "metric": metric,
                "value": value,
                "error": (value * (1 - value) / len(images)) ** 0.5 if share else None,
                "fp32": exact[metric],
                "nearest": rounded.get(metric),
                "n": len(images),
                "seconds": seconds,
                "weight_share": net.sizes["weights"] / net.sizes["float_weights"],
            }


def metrics(target: Tensor, scores: Tensor, accepted: list[list[int]] | None) -> dict[str, float]:
    """Agreement with the float network, divergence from it, and top-1 where there are labels.

    Args:
        target, scores: ``[n, classes]`` of the float and of the judged network.
        accepted: for each image the classes that count as right.
    """
    found = {
        "agreement": (scores.argmax(1) == target.argmax(1)).double().mean().item(),
        "kl": divergence(target, scores).double().mean().item(),
    }
    return found if accepted is None else {"top1": zoo.accuracy(scores, accepted), **found}


@cache
def _calibration(case: Case) -> Tensor:
    if case.protocol == "foreign":
        from pyquant.zoo.photographs import CALIBRATION_PHOTOGRAPHS, photo_crops

        images = photo_crops(None, 160, seed=0, photographs=CALIBRATION_PHOTOGRAPHS)
    else:
        images = zoo.calibration(case.network)
    if case.seed is None:
        return images[: case.calibration_images]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(case.seed))
    return images[order[: case.calibration_images]]


def _judged_by(case: Case, count: int | None) -> Mapping[str, tuple[Tensor, list[list[int]] | None]]:
    """Protocol -> images and their labels, the first so many."""
    found = {}
    for name in ("split", "photographs") if case.protocol == "split" else (case.protocol,):
        images, accepted = _evaluation(case.network, name)
        found[name] = images[:count], None if accepted is None else accepted[:count]
    return found


@cache
def _evaluation(network: str, protocol: str) -> tuple[Tensor, list[list[int]] | None]:
    if protocol == "photographs":
        from pyquant.zoo.photographs import photo_crops

        return photo_crops(None, CROPS, seed=1), None
    if protocol == "foreign":
        from pyquant.zoo.images import labelled_images

        labelled = labelled_images()
        return labelled.images, [list(right) for right in labelled.accepted]
    return zoo.evaluation(network)


@cache
def _float_scores(network: str, protocol: str) -> Tensor:
    model, (images, _) = zoo.load(network), _evaluation(network, protocol)
    with torch.no_grad():
        return torch.cat([model(batch) for batch in images.split(BATCH)])


def _scores(net: Net, images: Tensor) -> Tensor:
    return torch.cat([net(batch) for batch in images.split(BATCH)])


@cache
def _nearest(case: Case, threads: int) -> Net:
    return _quantised(case, threads)


def _quantised(case: Case, threads: int) -> Net:
    q = quantize_model(zoo.load(case.network), _calibration(case), case.recipe())
    return deploy(q, backend="cpu", threads=threads)
