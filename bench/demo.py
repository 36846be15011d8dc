"""The main job on a real network: EfficientNet-Lite0 at 0.13 of its weight bytes, in integers on this CPU.

``make demo`` prints one table and writes ``build/demo.json``. Every figure is measured by running the integer program on
evaluation images that no calibration saw (split protocol).
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pyquant import zoo
from pyquant.cli import progress_bar
from pyquant.fidelity import divergence
from pyquant.model import prepare
from pyquant.pipeline import Recipe, Study, assemble, examine, float_bytes
from pyquant.runtime.compare import site_agreement
from pyquant.runtime.net import deploy

MODEL, BUDGET = "efficientnet_lite0", 0.13
BATCH, ROUNDS = 16, 7


def main() -> None:
    """Quantise by every recipe, measure, print, write."""
    # A log has no width of its own, and 80 columns would cut the table's figures.
    console = Console() if sys.stdout.isatty() else Console(width=110)
    begin = time.perf_counter()
    model, data = zoo.load(MODEL), zoo.calibration(MODEL)
    images, accepted = zoo.evaluation(MODEL)
    recipes = (Recipe.nearest(BUDGET), Recipe.light(BUDGET), Recipe.advanced(BUDGET))
    q = prepare(model, data[:1])
    studies: dict[bool, Study] = {}
    quantised = {}
    with progress_bar() as progress:
        for recipe in recipes:
            if recipe.learn not in studies:
                studies[recipe.learn] = examine(q, data, recipe, {}, progress(recipe.name))
            quantised[recipe.name] = assemble(studies[recipe.learn], data, recipe, {}, progress(recipe.name))
            console.print(f"{recipe.name} quantised after {time.perf_counter() - begin:.0f} s")
    nets = {name: deploy(quant) for name, quant in quantised.items()}
    with torch.no_grad():
        target = torch.cat([model(batch) for batch in images.split(BATCH)])
    rows = {"fp32": _accuracy(target, target, accepted) | {"bytes": float_bytes(q), "all_bytes": None}}
    for name, net in nets.items():
        scores = torch.cat([net(batch) for batch in images.split(BATCH)])
        sizes = net.sizes
        rows[name] = _accuracy(target, scores, accepted) | {
            "bytes": sizes["weights"],
            "all_bytes": sizes["total"],
        }

    def run_float() -> Tensor:
        with torch.no_grad():
            return model(images[:BATCH])

    timed: dict[str, Callable[[], Any]] = {"fp32": run_float} | {
        name: lambda net=net: net(images[:BATCH]) for name, net in nets.items()
    }
    for name, rate in _images_per_second(timed).items():
        rows[name]["images_per_s"] = rate
    agreement = site_agreement(quantised["advanced"], nets["advanced"].program, [images[:BATCH]])
    seconds = time.perf_counter() - begin

    table = Table(
        "network",
        "top-1",
        "top-5",
        "agreement",
        "logit error",
        "weight bytes",
        "of fp32",
        "all bytes",
        "images/s",
    )
    for name, row in rows.items():
        table.add_row(
            name, *(f"{row[key]:.3f}" for key in ("top1", "top5", "agreement", "logit_error")), f"{row['bytes']:,}",
            f"{row['bytes'] / rows['fp32']['bytes']:.4f}", f"{row['all_bytes'] or row['bytes']:,}", f"{row['images_per_s']:.1f}",
        )  # fmt: skip
    console.print(table)
    console.print(
        f"n = {len(accepted)} evaluation images (split protocol, {len(data)} for calibration), standard error about "
        f"{100 * (0.15 / len(accepted)) ** 0.5:.0f} points; images/s at batch {BATCH}, {torch.get_num_threads()} threads."
    )
    worst = min(agreement, key=lambda site: agreement[site])
    console.print(
        f"integer against fake-quant, same input codes: worst site {worst}, {agreement[worst]:.6f} of codes equal."
    )
    # In kibibytes on Linux; of the whole process, so all three recipes and torch itself are in it.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    console.print(f"{seconds:.0f} s in all, {peak:.2f} GiB of memory at the peak.")
    report = rows | {
        "integer_vs_fake_agreement": agreement[worst],
        "seconds": seconds,
        "peak_gib": peak,
        "n": len(accepted),
    }
    out = Path("build/demo.json")
    out.parent.mkdir(exist_ok=True)
    aside = out.with_suffix(".json.part")
    aside.write_text(json.dumps(report, indent=1) + "\n")
    aside.replace(out)


def _accuracy(target: Tensor, scores: Tensor, accepted: list[list[int]]) -> dict[str, Any]:
    return {
        "top1": zoo.accuracy(scores, accepted, 1),
        "top5": zoo.accuracy(scores, accepted, 5),
        "agreement": (scores.argmax(1) == target.argmax(1)).float().mean().item(),
        "logit_error": ((scores - target).square().mean() / target.square().mean()).sqrt().item(),
        "kl": divergence(target, scores).mean().item(),
    }


def _images_per_second(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median rates of interleaved rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for once in range(ROUNDS + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if once:  # the first round warms up
                seconds[name].append(time.perf_counter() - begin)
    return {name: BATCH / statistics.median(times) for name, times in seconds.items()}


if __name__ == "__main__":
    main()
