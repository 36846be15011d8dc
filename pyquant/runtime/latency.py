"""Latency of every site at every choice of bits, measured on this machine, with our own kernels, where they run.

An op alone in a loop is not what it is in a network: its weights stay in the cache and its input needs no border. So whole
networks run, every site at one width, with a clock on each op inside the engine. What is not a site's (pooling, adds, the way
in and out) is the fixed part. On a CPU kernels multiply bytes whatever the width: few bits save memory, hardly ever time.
"""

from __future__ import annotations

import hashlib
import json
import platform
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from pyquant.errors import BackendError
from pyquant.journal import Journal
from pyquant.model import QModel, SiteWeights, nearest_weights, with_bits, with_ranges
from pyquant.ops.backend import extension, missing
from pyquant.runtime.execute_cpu import CpuExecutor, stopwatch
from pyquant.runtime.lower import lower
from pyquant.runtime.program import Op, Program

Bits = tuple[int, int]
ROUNDS = 40
# Runs that another process interrupts do not count: so many times the rounds are tried.
TRIES = 8
# Calls before one that counts: networks take turns, and leave each other cold caches.
WARM = 3
# What tells one op's time from another's, beside its kind, its shapes and which tensors it has.
GEOMETRY = ("kernel", "stride", "padding", "dilation", "groups", "window", "weight_bits", "op")


@dataclass(frozen=True)
class Latencies:
    """Nanoseconds of one call with one image.

    Args:
        sites: site -> (weight bits, input bits) -> what the site takes, with the lookup that a narrower input needs.
        fixed: all that does not depend on the choice.
        where: processor, instruction set, threads and kernels, in words.
    """

    sites: Mapping[str, Mapping[Bits, int]]
    fixed: int
    where: str

    def predict(self, bits: Mapping[str, Bits]) -> int:
        """Nanoseconds of the whole network under a plan."""
        return self.fixed + sum(self.sites[site][pair] for site, pair in bits.items())


def latencies(
    q: QModel,
    choices: Mapping[str, Collection[Bits]],
    found: Mapping[tuple[str, int], SiteWeights] | None = None,
    *,
    table: Journal | None = None,
    threads: int = 1,
    rounds: int = ROUNDS,
) -> Latencies:
    """Look up or measure what each choice takes.

    Args:
        q: a calibrated model.
        choices: site -> (weight bits, input bits).
        found: (site, weight bits) -> weights, to save rounding them: speed does not depend on their values.
        table: known times by machine, kernels, threads and op, to which new ones are added; None forgets them.
        threads: of a call with one image.
        rounds: runs of each network; the median of an op's times counts.

    Raises:
        BackendError: the engine cannot run here, or cannot run the network.
    """
    q.check_calibrated("latencies")
    why = missing("cpu")
    if why is not None:
        raise BackendError(f"latency cannot be measured: {why}.")
    weight_bits = sorted({w for pairs in choices.values() for w, _ in pairs})
    input_bits = sorted({a for pairs in choices.values() for _, a in pairs}, reverse=True)
    # The time of a kernel depends on the weight bits, that of a lookup is there or not: one network for each of either.
    plans = [(w, input_bits[0]) for w in weight_bits] + [(weight_bits[-1], a) for a in input_bits[1:]]
    programs = {pair: _program(q, choices, pair, found or {}) for pair in plans}
    where = place(threads)
    times = _times(programs, where, threads, rounds, table)

    def of(pair: Bits, kind: str, name: str) -> int:
        program = programs[pair]
        return sum(
            times[_key(where, op, program)] for op in program.ops if (op.kind, op.name) == (kind, name)
        )

    def site(name: str, w: int, a: int) -> int:
        return of((w, input_bits[0]), "conv", name) + of(
            (weight_bits[-1] if a != input_bits[0] else w, a), "lookup", f"{name}:input"
        )

    sites = {name: {(w, a): site(name, w, a) for w, a in pairs} for name, pairs in choices.items()}
    widest = programs[plans[len(weight_bits) - 1]]
    chosen = set(choices) | {f"{name}:input" for name in choices}
    others = sum(times[_key(where, op, widest)] for op in widest.ops if op.name not in chosen)
    return Latencies(sites, others + times[_rest_key(where, widest)], where)


def place(threads: int) -> str:
    """What a time belongs to: processor, best instruction set, threads, and a digest of the compiled kernels."""
    native = extension()
    assert native is not None and native.__file__ is not None
    isa = native.available_isas()[0]
    return f"{_processor()}, {isa}, {threads} threads, kernels {_digest(native.__file__)}"


def measured(program: Program, threads: int = 1, rounds: int = ROUNDS) -> int:
    """Nanoseconds of a call of the whole program with one image, the median; no clock inside."""
    executor, inputs = CpuExecutor(program, threads), _inputs(program)
    samples = []
    for _ in range(TRIES * rounds):
        for _ in range(WARM):
            executor(*inputs)
        samples.append(stopwatch(partial(executor, *inputs), threads))
        if sum(not interrupted for _, interrupted in samples) == rounds:
            break
    clean = [whole for whole, interrupted in samples if not interrupted]
    return round(statistics.median(clean or [whole for whole, _ in samples]))


def describe(op: Op, program: Program) -> str:
    """One line that is the same for ops that take the same time."""
    values = [program.values[name] for name in (*op.inputs, op.output)]
    attributes = {key: op.attributes[key] for key in GEOMETRY if key in op.attributes}
    facts: dict[str, Any] = {
        "shapes": [list(value.shape) for value in values],
        "to": values[-1].kind,
        "tensors": sorted(op.tensors),
        **attributes,
    }
    return f"{op.kind} {json.dumps(facts, sort_keys=True, default=str)}"


def _program(
    q: QModel,
    choices: Mapping[str, Collection[Bits]],
    pair: Bits,
    found: Mapping[tuple[str, int], SiteWeights],
) -> Program:
    """The network with all sites that have a choice at one; others stay as they are."""
    plan = with_bits(q.plan, dict.fromkeys(choices, pair))
    weights = dict(q.weights)
    for site in choices:
        if plan[site].weight != q.plan[site].weight:
            known = found.get((site, pair[0]))
            weights[site] = nearest_weights(q, site, plan[site].weight) if known is None else known
    return lower(with_ranges(replace(q, plan=plan, weights=weights), "minmax"))


def _times(
    programs: Mapping[Bits, Program], where: str, threads: int, rounds: int, table: Journal | None
) -> dict[str, int]:
    """Nanoseconds by key. Networks take turns, so that all see the same machine."""
    wanted = {pair: set(_keys(program, where)) for pair, program in programs.items()}
    known = {
        key: table[key] for keys in wanted.values() for key in keys if table is not None and key in table
    }
    left = {pair: programs[pair] for pair, keys in wanted.items() if not keys <= known.keys()}
    executors = {pair: CpuExecutor(program, threads) for pair, program in left.items()}
    samples: dict[str, list[int]] = {}
    done = dict.fromkeys(left, 0)
    for turn in range(TRIES * rounds):
        for pair, program in left.items():
            if done[pair] == rounds:
                continue
            inputs = _inputs(program)
            for _ in range(WARM):
                executors[pair](*inputs)
            timed = executors[pair].timed(*inputs)
            # Once more without the clocks, which take time themselves.
            whole, interrupted = stopwatch(partial(executors[pair], *inputs), threads)
            # On a machine that is never quiet, what was interrupted is better than nothing.
            if (timed.interrupted or interrupted) and turn < (TRIES - 1) * rounds:
                continue
            done[pair] += 1
            for op in program.ops:
                samples.setdefault(_key(where, op, program), []).append(timed.ops[op.output])
            rest = max(0, whole - sum(timed.ops.values()))
            samples.setdefault(_rest_key(where, program), []).append(rest)
    for key, values in samples.items():
        if key not in known:
            known[key] = round(statistics.median(values))
            if table is not None:
                table.put(key, known[key])
    return known


def _keys(program: Program, where: str) -> Iterator[str]:
    yield from (_key(where, op, program) for op in program.ops)
    yield _rest_key(where, program)


def _key(where: str, op: Op, program: Program) -> str:
    return f"{where}: {describe(op, program)}"


def _rest_key(where: str, program: Program) -> str:
    """What a call takes beside its ops: Python, the way in and out."""
    ends = [list(program.values[name].shape) for name in (*program.inputs, *program.outputs)]
    text = json.dumps([ends, sum(op.kind == "aten" for op in program.ops)])
    return f"{where}: around {text}"


def _inputs(program: Program) -> Sequence[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, *program.values[name].shape, generator=generator) for name in program.inputs]


@cache
def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@cache
def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
