"""Diagnosis: each figure against the same one by hand, and the right advice for faults made on purpose."""

import json
import math
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pyquant.diagnosis import diagnose
from pyquant.errors import DataError
from pyquant.grid import Grid
from pyquant.model import nearest_weights, prepare, with_bits, with_ranges
from pyquant.pipeline import Recipe, quantize_model
from pyquant.reference import fake_quantize
from pyquant.steps.calibrate import calibrate
from pyquant.steps.sensitivity import sensitivity, together
from tests.networks import build, images

DATA = images(20, seed=3)


def quantised(q, bits):
    """The model at other bits, rounded to nearest."""
    q = replace(q, plan=with_bits(q.plan, bits))
    weights = {s: nearest_weights(q, s, q.plan[s].weight) for s in q.graph.sites}
    return with_ranges(replace(q, weights=weights), "mse")


@pytest.fixture(scope="module")
def model(prepared):
    return calibrate(prepared("inverted_bottleneck"), DATA)


@pytest.fixture(scope="module")
def mixed(model):
    return quantised(model, {"reduce": (6, 8), "expand": (3, 5), "depthwise": (8, 4), "head": (2, 8)})


def decibels(signal, noise):
    return 10 * math.log10(signal.double().square().sum().item() / noise.double().square().sum().item())


# ------------------------------------------------------------------------------------------------------- the figures
def test_figures_of_two_sites_by_hand(mixed):
    found = {report.site: report for report in diagnose(mixed, DATA).sites}
    assert list(found) == list(mixed.graph.sites)
    net = build("inverted_bottleneck")
    with torch.no_grad():
        x = F.relu6(net.reduce_bn(net.reduce(F.pad(DATA, (0, 1, 0, 1)))))
        y = net.expand_bn(net.expand(x))
    site, grids = mixed.weights["expand"], mixed.plan["expand"]
    weight, own = site.dequantized(grids.weight), mixed.ranges["expand:input"]
    # What the site reads is an operand of the add too: 8 bits, then five.
    whole = mixed.ranges[mixed.graph.by_name["expand"].inputs[0]]
    x8 = fake_quantize(x, whole.scale, whole.zero_point, 0, 255)
    xq = fake_quantize(x8, own.scale, own.zero_point, 0, 31)
    exact = mixed.state["expand.weight"]
    report = found["expand"]
    assert (report.weight_bits, report.input_bits) == (3, 5)
    assert report.weight_snr == pytest.approx(decibels(exact, weight - exact), abs=1e-4)
    assert report.input_snr == pytest.approx(decibels(x, xq - x), abs=1e-3)
    bias = mixed.state["expand.bias"]
    errors = [F.conv2d(a, w, bias) - y for a, w in ((xq, weight), (x, weight), (xq, exact))]
    assert report.output_snr == pytest.approx(decibels(y, errors[0]), abs=1e-3)
    of_weights, of_inputs = (e.double().square().sum().item() for e in errors[1:])
    assert report.of_weights == pytest.approx(of_weights / (of_weights + of_inputs), rel=1e-3)
    assert report.of_weights + report.of_inputs == pytest.approx(1)
    seen = mixed.observed[mixed.graph.by_name["expand"].inputs[0]]
    assert (report.low, report.high) == (seen.low, seen.high) and seen.high == pytest.approx(x.max().item())


def test_errors_add_up_along_the_network(mixed):
    """The first site has no error before it; the depthwise one has those of a site of 3 bits."""
    found = {report.site: report for report in diagnose(mixed, DATA).sites}
    assert found["reduce"].network_snr == pytest.approx(found["reduce"].output_snr, abs=1e-6)
    assert found["depthwise"].network_snr < found["depthwise"].output_snr - 1


def test_sums_are_those_of_sensitivity(mixed):
    bits = {s: (g.weight.bits, g.input.bits) for s, g in mixed.plan.items()}
    found = {(s, w): mixed.weights[s] for s, (w, _) in bits.items()}
    given = diagnose(mixed, DATA)
    alone = sensitivity(mixed, DATA, {s: (b,) for s, b in bits.items()}, found)
    assert {r.site: r.moves for r in given.sites} == {s: t[bits[s]] for s, t in alone.items()}
    assert given.predicted == pytest.approx(sum(r.moves for r in given.sites))
    (whole,) = together(mixed, DATA, [bits], found)
    assert (given.measured, given.agreement, given.rows) == (whole.moved, whole.agreement, 20)


def test_few_rows_are_taken(mixed):
    assert diagnose(mixed, DATA, rows=7).rows == 7


def test_which_engine_won_is_told(prepared):
    q = quantize_model(prepared("inverted_bottleneck"), DATA, Recipe.fixed(3, 8))
    entry = next(e for e in q.log if e["step"] == "adaquant")
    for report in diagnose(q, DATA).sites:
        error, nearest = entry["errors"][report.site]
        assert report.engine == entry["won"][report.site] and report.gain == nearest / error >= 1
        assert report.engine != "nearest" or report.gain == 1
    plain = diagnose(calibrate(prepared("inverted_bottleneck"), DATA), DATA)
    assert {(r.engine, r.gain) for r in plain.sites} == {(None, None)}


def test_plain_numbers(mixed):
    told = diagnose(mixed, DATA).as_json()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    q = quantised(mixed, {})
    exact = {**q.state, "head.weight": q.weights["head"].dequantized(q.plan["head"].weight)}
    report = diagnose(replace(q, state=exact), DATA).sites[-1]
    assert report.weight_snr == math.inf
    assert diagnose(replace(q, state=exact), DATA).as_json()["sites"][-1]["weight_snr"] is None


# -------------------------------------------------------------------------------------------------------- the advice
FAULTS = {
    "weights": (
        {"project": (2, 8)},
        "project",
        r"by its weights; keep them at 8 bits with bits=\{'project': \(8, 8\)\}\.$",
    ),
    "inputs": (
        {"head": (8, 2)},
        "head",
        r"by its inputs; keep them at 8 bits with bits=\{'head': \(8, 8\)\}\.$",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_advice_by_what_hurts(model, fault):
    bits, site, words = FAULTS[fault]
    q = quantised(model, bits)
    found = diagnose(q, DATA)
    by_name = {report.site: report for report in found.sites}
    assert max(found.sites, key=lambda r: r.moves).site == site
    assert pytest.approx(found.predicted, rel=0.5) == by_name[site].moves
    assert [r.site for r in found.sites if r.advice] == [site]
    advice = by_name[site].advice
    assert advice.startswith(f"Site {site!r} loses most") and advice.count(". ") == 0
    assert re.search(words, advice)
    # Who follows it is rid of it.
    followed = diagnose(quantised(model, {site: (8, 8)}), DATA)
    assert followed.predicted < 0.2 * found.predicted
    assert f"worst site is {site!r}" in found.summary


def test_data_that_calibration_has_not_seen(prepared):
    q = calibrate(prepared("inverted_bottleneck"), DATA * 0.2)
    first = diagnose(q, DATA).sites[0]
    assert first.beyond > 0.3 and "lies beyond the range that calibration saw" in first.advice
    assert diagnose(q, DATA * 0.2).sites[0].beyond < 0.01


def test_weights_of_one_scale(prepared):
    q = prepare(build("inverted_bottleneck"), DATA[:1], weights=Grid(4))
    worst = max(diagnose(calibrate(q, DATA), DATA).sites, key=lambda r: r.moves)
    assert f"give Grid({worst.weight_bits}, axis=0)." in worst.advice


def test_weights_on_one_side_of_zero():
    net = build("inverted_bottleneck")
    with torch.no_grad():
        net.project.weight.abs_().add_(3.0)
    others = dict.fromkeys(("reduce", "expand", "depthwise", "head"), (8, 8))
    q = calibrate(prepare(net, DATA[:1], weights=Grid(3, axis=0), bits=others), DATA)
    report = {r.site: r for r in diagnose(q, DATA).sites}["project"]
    assert report.advice.endswith("give them a zero point with Grid(3, axis=0, symmetric=False).")


def test_a_model_that_is_not_calibrated(prepared):
    with pytest.raises(DataError, match="diagnose needs a calibrated model"):
        diagnose(prepared("inverted_bottleneck"), DATA)
