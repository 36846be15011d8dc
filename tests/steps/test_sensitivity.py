"""Sensitivity: the numbers of running all anew with one site quantised, on few rows, evenly taken."""

from dataclasses import replace

import pytest
import torch

from pyquant.data import load_batches
from pyquant.errors import DataError
from pyquant.fidelity import divergence
from pyquant.graph import FloatView, run
from pyquant.model import SiteWeights, nearest_weights, with_bits
from pyquant.quantizer import choose_range
from pyquant.reference import fake_quantize
from pyquant.regions import source
from pyquant.steps.calibrate import calibrate
from pyquant.steps.sensitivity import ROWS, sensitivity
from tests.networks import images, inputs

NETWORKS = ("inverted_bottleneck", "resnet", "two_inputs", "two_outputs", "called_twice", "text")


@pytest.fixture(scope="module")
def calibrated(prepared):
    """Name of a shared network -> its calibrated model and 20 rows: a full batch and one of four."""

    def build(name):
        data = [inputs(name, 20)]
        return calibrate(prepared(name), data), data

    return build


@pytest.fixture(scope="module")
def bottleneck(prepared):
    return calibrate(prepared("inverted_bottleneck"), images(16))


def everywhere(q, *bits):
    return dict.fromkeys(q.graph.sites, bits)


class OneSite(FloatView):
    """The float network but for one site, whose weight, bias and input are as given."""

    def __init__(self, q, site, weights, grid, qparams):
        super().__init__(q.state)
        self.site, self.grid, self.qparams = site, grid, qparams
        self.weight, self.bias = weights.dequantized(q.plan[site].weight), weights.bias

    def params(self, node):
        return {"weight": self.weight, "bias": self.bias} if node.name == self.site else super().params(node)

    def site_input(self, node, value):
        if node.name != self.site:
            return value
        return fake_quantize(
            value, self.qparams.scale, self.qparams.zero_point, self.grid.qmin, self.grid.qmax
        )


def from_scratch(q, data, site, bits, weights=None, method="mse"):
    """Mean divergence of all outputs, every batch run from its inputs to its outputs."""
    weights = weights or nearest_weights(q, site, q.plan[site].weight.with_bits(bits[0]))
    grid = q.plan[site].input.with_bits(bits[1])
    seen = q.observed[source(q.graph, q.graph.by_name[site].inputs[0])]
    view = OneSite(q, site, weights, grid, choose_range(seen, grid, method))
    batches = load_batches(data, q.graph)
    total = 0.0
    with torch.no_grad():
        for batch in batches:
            exact, moved = (run(q.graph, v, batch) for v in (FloatView(q.state), view))
            rows = [divergence(exact[name], moved[name]).double() for name in q.graph.outputs]
            total += sum(rows).sum().item()
    return total / sum(len(batch[0]) for batch in batches)


@pytest.mark.parametrize("method", ["mse", "minmax"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_float_prefix_changes_no_bit(calibrated, name, method):
    """Every site and width, against runs that reuse nothing; same operations, same numbers."""
    q, data = calibrated(name)
    choices = everywhere(q, (3, 8), (8, 2), (4, 4))
    found = sensitivity(q, data, choices, method=method)
    assert list(found) == list(q.graph.sites)
    for site, table in found.items():
        assert list(table) == [(3, 8), (8, 2), (4, 4)]
        for bits, moved in table.items():
            assert moved == from_scratch(q, data, site, bits, method=method) > 0, (site, bits)


def test_the_method_of_the_range_matters(calibrated):
    q, data = calibrated("inverted_bottleneck")
    by_method = [sensitivity(q, data, everywhere(q, (8, 2)), method=m) for m in ("mse", "minmax")]
    assert by_method[0] != by_method[1]


@pytest.mark.parametrize("name", NETWORKS)
def test_fewer_bits_move_more(calibrated, name):
    q, data = calibrated(name)
    for site, table in sensitivity(q, data, everywhere(q, (8, 8), (2, 8), (8, 2))).items():
        assert table[8, 8] < table[2, 8] and table[8, 8] < table[8, 2], site


def test_weights_already_found_are_taken(calibrated):
    """Dead weights at 4 bits for one site; all others, and 3 bits, are rounded to nearest."""
    q, data = calibrated("inverted_bottleneck")
    plain = q.weights["expand"]
    dead = SiteWeights(torch.zeros_like(plain.codes), plain.qparams, plain.bias + 1.0)
    choices = everywhere(q, (4, 8), (3, 8))
    without, found = sensitivity(q, data, choices), sensitivity(q, data, choices, {("expand", 4): dead})
    assert found["expand"][4, 8] == from_scratch(q, data, "expand", (4, 8), dead) != without["expand"][4, 8]
    without["expand"][4, 8] = found["expand"][4, 8]
    assert found == without


def test_outputs_add_up(calibrated):
    """The map's own site moves the map alone, the body's moves both."""
    q, data = calibrated("two_outputs")
    both = sensitivity(q, data, everywhere(q, (3, 8)))
    alone = {}
    for i, name in enumerate(q.graph.outputs):
        graph = replace(q.graph, outputs=(name,))
        alone[i] = sensitivity(replace(q, graph=graph), data, everywhere(q, (3, 8)))
    assert alone[1]["map"][3, 8] == 0.0 and alone[0]["vector"][3, 8] == 0.0
    assert both["map"] == alone[0]["map"] and both["vector"] == alone[1]["vector"]
    first, second = alone[0]["body"][3, 8], alone[1]["body"][3, 8]
    # Three sums in float64 instead of two.
    assert both["body"][3, 8] == pytest.approx(first + second, rel=1e-14) and min(first, second) > 0


def test_many_rows_are_thinned_out_evenly(bottleneck):
    data = images(200, seed=5)
    taken = [round(i * 199 / (ROWS - 1)) for i in range(ROWS)]
    assert ROWS == 64 and len(set(taken)) == 64 and taken[0] == 0 and taken[-1] == 199
    choices = {"project": ((3, 8),), "head": ((4, 4),)}
    assert sensitivity(bottleneck, data, choices) == sensitivity(bottleneck, data[taken], choices)
    for site, (bits,) in choices.items():
        assert sensitivity(bottleneck, data, choices)[site][bits] == from_scratch(
            bottleneck, data[taken], site, bits
        )


@pytest.mark.parametrize("rows", [1, 17, ROWS])
def test_few_rows_are_all_taken(bottleneck, rows):
    data = images(rows, seed=6)
    found = sensitivity(bottleneck, data, {"expand": ((3, 8),)})
    assert found == {"expand": {(3, 8): from_scratch(bottleneck, data, "expand", (3, 8))}}


def test_batches_of_the_user_do_not_matter(bottleneck):
    data, choices = images(20, seed=7), everywhere(bottleneck, (4, 8))
    pairs = ((part, torch.zeros(len(part))) for part in data.split(3))
    assert sensitivity(bottleneck, pairs, choices) == sensitivity(bottleneck, data, choices)


def test_sites_and_widths_do_not_see_each_other(bottleneck):
    data = images(8, seed=8)
    everything = sensitivity(bottleneck, data, everywhere(bottleneck, (2, 8), (8, 8)))
    for site in bottleneck.graph.sites:
        assert sensitivity(bottleneck, data, {site: ((8, 8),)})[site][8, 8] == everything[site][8, 8]
    assert sensitivity(bottleneck, data, {}) == {}


def test_the_present_plan_does_not_matter(calibrated):
    """Other sites are float whatever their own bits are, and so is the site but for the choice."""
    q, data = calibrated("inverted_bottleneck")
    low = replace(q, plan=with_bits(q.plan, dict.fromkeys(q.graph.sites, (2, 2))))
    choices = everywhere(q, (4, 8))
    assert sensitivity(low, data, choices) == sensitivity(q, data, choices)


def test_progress_counts_every_site_of_every_batch(bottleneck):
    calls = []
    choices = everywhere(bottleneck, (4, 8), (8, 8))
    sensitivity(bottleneck, images(20), choices, progress=lambda *call: calls.append(call))
    total = 2 * len(choices)
    assert [done for _, done, _ in calls] == list(range(1, total + 1))
    assert {t for _, _, t in calls} == {total}
    assert [site for site, _, _ in calls] == 2 * list(choices)


def test_what_was_given_is_left_alone(bottleneck):
    codes = {site: w.codes.clone() for site, w in bottleneck.weights.items()}
    ranges, plan, data = dict(bottleneck.ranges), dict(bottleneck.plan), images(8)
    kept = data.clone()
    sensitivity(bottleneck, data, everywhere(bottleneck, (2, 2)))
    assert dict(bottleneck.plan) == plan and dict(bottleneck.ranges) == ranges and torch.equal(data, kept)
    assert all(torch.equal(bottleneck.weights[site].codes, codes[site]) for site in codes)


def test_bad_arguments(bottleneck):
    choices = everywhere(bottleneck, (8, 8))
    with pytest.raises(DataError, match="sensitivity needs a calibrated model"):
        sensitivity(replace(bottleneck, weights={}), images(2), choices)
    with pytest.raises(DataError, match="empty"):
        sensitivity(bottleneck, [], choices)
    with pytest.raises(DataError, match="range method 'guess' is unknown"):
        sensitivity(bottleneck, images(2), choices, method="guess")
