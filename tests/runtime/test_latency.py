"""Latencies by site: which op's time goes where, what is kept, and what is asked of the clock. No test knows a true time."""

import time
from collections import Counter
from dataclasses import replace

import pytest
import torch

from pyquant.errors import BackendError, DataError
from pyquant.journal import Journal
from pyquant.model import nearest_weights, with_bits, with_ranges
from pyquant.ops.backend import missing
from pyquant.runtime import latency
from pyquant.runtime.execute_cpu import CpuExecutor, Timed, stopwatch
from pyquant.runtime.latency import describe, latencies, measured
from pyquant.runtime.lower import lower
from pyquant.steps.calibrate import calibrate
from tests.networks import images, inputs
from tests.runtime.random_program import random_network

pytestmark = pytest.mark.skipif(missing("cpu") is not None, reason=str(missing("cpu")))
CHOICES = ((4, 8), (8, 8), (8, 4), (4, 4))


@pytest.fixture(scope="module")
def model(prepared):
    return calibrate(prepared("resnet"), images(6, side=16))


def everywhere(q, choices=CHOICES):
    return dict.fromkeys(q.graph.sites, choices)


@pytest.fixture
def clock(monkeypatch):
    """A clock that each op moves by a number of its own; every third run is interrupted, and takes twice as long;
    so is every fifth call without a clock."""
    calls = []

    def timed(self, *given):
        calls.append(None)
        self(*given)
        taken = {op.output: of(op) * (1 + (len(calls) % 3 == 0)) for op in self.program.ops}
        calls[-1] = self.program, sum(taken.values()) + 5_000_000
        return Timed(taken, len(calls) % 3 == 0)

    monkeypatch.setattr(CpuExecutor, "timed", timed)
    monkeypatch.setattr(latency, "stopwatch", lambda call, threads: (calls[-1][1], len(calls) % 5 == 0))
    return calls


def of(op):
    """A time that tells kinds, sizes and weight bits apart."""
    size = sum(t.numel() for role, t in op.tensors.items() if role == "bias")
    return {"conv": 1000, "lookup": 7}.get(op.kind, 31) + 100 * size + op.attributes.get("weight_bits", 0)


# ------------------------------------------------------------------------------------------------- a clock on every op
@pytest.mark.parametrize("seed", range(6))
def test_timed_runs_time_every_op_and_give_the_same_bytes(seed, monkeypatch):
    program, given = random_network(seed)
    executor, kept = CpuExecutor(program, threads=1), []
    real = executor._call
    monkeypatch.setattr(executor, "_call", lambda *a: kept.append(real(*a)) or kept[-1])
    timed = []
    whole, _ = stopwatch(lambda: timed.append(executor.timed(*given)), 1)
    taken = timed[0].ops
    want = CpuExecutor(program, threads=1)(*given)
    assert all(torch.equal(a, b) for a, b in zip(kept[0], want, strict=True))
    assert taken.keys() == {op.output for op in program.ops}
    # A flattened map may be a view of what it is made of; whatever computes takes time.
    assert all(taken[op.output] > 0 for op in program.ops if op.kind != "flatten")
    assert 0 < sum(taken.values()) < whole


def test_several_images_in_several_threads_are_not_timed(model):
    executor = CpuExecutor(lower(with_ranges(model, "minmax")), threads=2)
    assert sum(executor.timed(images(1, side=16)).ops.values()) > 0
    with pytest.raises(BackendError, match="2 images in 2 threads cannot be timed op by op"):
        executor.timed(images(2, side=16))


def test_who_waits_for_the_processor_is_interrupted():
    """A call that sleeps has it for none of its time; of several threads nothing is known."""
    assert stopwatch(lambda: time.sleep(0.05), 1)[1] and not stopwatch(lambda: time.sleep(0.05), 2)[1]
    assert stopwatch(lambda: time.sleep(0.05), 1)[0] >= 50_000_000


def test_ops_that_may_differ_in_time_have_other_keys(model):
    program = lower(with_ranges(model, "minmax"))
    low = replace(model, plan=with_bits(model.plan, {"fc": (4, 8)}))
    low = replace(low, weights={**low.weights, "fc": nearest_weights(low, "fc", low.plan["fc"].weight)})
    named = {op.name: describe(op, program) for op in program.ops}
    other = {op.name: describe(op, p) for p in [lower(with_ranges(low, "minmax"))] for op in p.ops}
    assert {name for name in named if named[name] != other[name]} == {"fc"}
    assert len(set(named.values())) == len(named)
    # The values of weights, and names, are no part of it.
    again = replace(model.weights["fc"], bias=model.weights["fc"].bias + 1)
    moved = lower(with_ranges(replace(model, weights={**model.weights, "fc": again}), "minmax"))
    assert {op.name: describe(op, moved) for op in moved.ops} == named


# ------------------------------------------------------------------------------------------------------- who takes what
def test_a_site_takes_its_own_time_at_its_own_bits(model, clock):
    """Of the pooled stem's two readers none needs a lookup; nor has any, where no add reads what they read."""
    found = latencies(model, everywhere(model))
    for site in model.graph.sites:
        n = model.state[f"{site}.bias"].numel()
        assert found.sites[site] == {(w, a): 1000 + 100 * n + w for w, a in CHOICES}, site
    program = lower(with_ranges(model, "minmax"))
    others = sum(of(op) for op in program.ops if op.kind != "conv")
    assert found.fixed == others + 5_000_000
    bits = dict.fromkeys(model.graph.sites, (4, 8))
    assert found.predict(bits) == sum(map(of, program.ops)) - 4 * len(bits) + 5_000_000


def test_a_narrower_input_beside_an_add_costs_a_lookup(prepared, clock):
    """The first site's value is added to what the last gives, and keeps 8 bits."""
    q = calibrate(prepared("inverted_bottleneck"), images(6))
    found = latencies(q, everywhere(q))
    cost = {site: {of[8, 4] - of[8, 8] for of in [table]} for site, table in found.sites.items()}
    assert cost == {"reduce": {0}, "expand": {7}, "depthwise": {0}, "project": {0}, "head": {0}}
    assert found.sites["expand"][4, 4] - found.sites["expand"][8, 4] == -4


def test_pinned_sites_keep_their_bits(model, clock):
    found = latencies(model, {"fc": CHOICES[:2], "stem.0": ((8, 8),)})
    assert set(found.sites) == {"fc", "stem.0"}
    assert {op.attributes["weight_bits"] for p, _ in clock for op in p.ops if op.name == "stem.0"} <= {4, 8}
    convs = [of(op) for op in lower(with_ranges(model, "minmax")).ops if op.name not in ("fc", "stem.0")]
    assert found.fixed == sum(convs) + 5_000_000


def test_equal_ops_share_one_time(prepared, clock):
    """A module called twice: two sites, one entry."""
    q = calibrate(prepared("called_twice"), [inputs("called_twice", 4)])
    found = latencies(q, everywhere(q))
    assert len(found.sites) == 2 and len({tuple(t.items()) for t in found.sites.values()}) == 1


# ------------------------------------------------------------------------------------------------------------- the table
def test_known_times_are_not_measured_again(model, clock, tmp_path):
    table = Journal(tmp_path / "latency.jsonl")
    found = latencies(model, everywhere(model), table=table)
    runs = Counter(id(program) for program, _ in clock)
    # A third of them are interrupted, and a fifth of what follows them, and do not count.
    counted = sum((i % 3 and i % 5) > 0 for i in range(1, len(clock) + 1))
    assert len(runs) == 3 and counted == 3 * latency.ROUNDS
    clock.clear()
    assert latencies(model, everywhere(model), table=Journal(table.path)) == found and not clock
    # Half of the table is lost: what is left is taken as it is, the rest measured anew.
    lines = table.path.read_text().splitlines(keepends=True)
    table.path.write_text("".join(lines[::2]).replace('"value": ', '"value": 1'))
    kept = Journal(table.path)
    again = latencies(model, everywhere(model), table=kept)
    assert clock and again != found


def test_times_of_another_machine_or_other_kernels_are_not_taken(model, clock, tmp_path, monkeypatch):
    table = Journal(tmp_path / "latency.jsonl")
    latencies(model, everywhere(model), table=table)
    before, runs = len(clock), []

    def again(**options):
        clock.clear()
        found = latencies(model, everywhere(model), table=table, **options)
        runs.append(len(clock))
        return found

    again(threads=2)
    monkeypatch.setattr(latency, "_processor", lambda: "another one")
    assert again().where.startswith("another one, ")
    monkeypatch.setattr(latency, "_digest", lambda path: "built anew")
    again()
    again()
    assert runs == [before, before, before, 0]


def test_a_true_clock(model):
    """Only that the parts are those of a whole: no machine is quiet enough for more."""
    found = latencies(model, everywhere(model, ((8, 8),)), rounds=3)
    assert all(t > 0 for table in found.sites.values() for t in table.values()) and found.fixed > 0
    assert measured(lower(with_ranges(model, "minmax")), rounds=3) > 0


def test_a_model_without_ranges(prepared):
    with pytest.raises(DataError, match="latencies needs a calibrated model"):
        latencies(prepared("resnet"), {})
