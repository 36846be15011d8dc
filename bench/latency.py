"""Is latency what its table says? Whole networks at plans of mixed bits, predicted from measured sites, against measured whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from bench.measure import bound_of, measure
from bench.network import calibration
from bench.peers.cached import model_of
from bench.record import Row
from pyquant.costs import multiply_adds
from pyquant.model import QModel, nearest_weights, prepare, with_bits, with_ranges
from pyquant.runtime.latency import Bits, latencies
from pyquant.runtime.latency import measured as measured_whole
from pyquant.runtime.net import deploy
from pyquant.steps.calibrate import calibrate

MODELS = ("resnet20", "efficientnet_lite0")
CHOICES: tuple[Bits, ...] = tuple((w, a) for w in (2, 4, 8) for a in (4, 8))


def rows(threads: Sequence[int], quick: bool, peers: bool) -> Iterator[Row]:
    """Every zoo network at three plans; quick: ResNet-20 alone."""
    for name in MODELS[:1] if quick else MODELS:
        data = calibration(name)
        q = calibrate(prepare(model_of(name), data[:1]), data)
        for count in threads:
            torch.set_num_threads(count)
            yield from _network(name, q, data[:1], count, quick)


def _network(name: str, q: QModel, x: torch.Tensor, threads: int, quick: bool) -> Iterator[Row]:
    found = latencies(q, dict.fromkeys(q.graph.sites, CHOICES), threads=threads, rounds=5 if quick else 40)
    plans = {
        "w8a8": dict.fromkeys(q.graph.sites, (8, 8)),
        "w4a8": dict.fromkeys(q.graph.sites, (4, 8)),
        "mixed": {site: CHOICES[i % len(CHOICES)] for i, site in enumerate(q.graph.sites)},
    }
    nets = {plan: deploy(_at(q, bits), backend="cpu", threads=threads) for plan, bits in plans.items()}
    runs = {f"cpu-{plan}": lambda net=net: net(x) for plan, net in nets.items()}
    limit = bound_of("cpu")
    measured = measure(runs, [limit], threads, rounds=3 if quick else 9)
    operations = 2 * sum(multiply_adds(q, site) for site in q.graph.sites)
    for plan, bits in plans.items():
        row = measured.row(f"{name} {plan}", f"cpu-{plan}", operations=operations, limit=limit)
        predicted = found.predict(bits)
        of_sites = sum(found.sites[site][pair] for site, pair in bits.items())
        # What others interrupt counts in neither; `us` is the CPU time of whatever ran.
        whole = measured_whole(nets[plan].program, threads, rounds=5 if quick else 40)
        yield row | {
            "predicted_us": predicted / 1e3,
            "measured_us": whole / 1e3,
            "over_measured": predicted / whole,
            "share_of_sites": of_sites / predicted,
        }


def _at(q: QModel, bits: dict[str, Bits]) -> QModel:
    q = replace(q, plan=with_bits(q.plan, bits))
    weights = {site: nearest_weights(q, site, q.plan[site].weight) for site in bits}
    return with_ranges(replace(q, weights=weights), "minmax")
