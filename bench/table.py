"""Writes the README's tables from ``bench/results``: ``python -m bench.table``. No figure there is typed by hand.

A table stands between ``<!-- bench:NAME -->`` and ``<!-- /bench -->``; the last run of each suite is what counts.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.network import INT8_PEERS, PEERS
from bench.peers.crew import WITHOUT_AMX
from bench.record import RESULTS, ROOT, Row, last_run

README = ROOT / "README.md"
BLOCK = re.compile(r"(<!-- bench:(\w+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
# Kernels and cases of GPUs that the README shows, of all that the results have: one of every kind, on products of Llama's shapes.
GPU_KERNELS = (
    ("gemm_s8_kernel", "M4096"),
    ("gemm_s8_codes_128x128", "M4096"),
    ("gemm_w4a8_kernel", "M4096-row"),
    ("gemm_w4a8_signed_row_128x128", "M4096"),
    ("gemm_w4a8_kernel", "M4096-g128"),
    ("gemm_w4a8_signed_group_64x128", "M4096-g128"),
    ("gemm_w4a4_signed_row_128x128", "M4096"),
    ("gemm_w4a4_signed_group128_64x128", "M4096-g128"),
    ("gemm_w4a16_kernel", "M16-g128-bf16"),
    ("gemm_w4a16_bf16_16x128", "M16-g128"),
    ("conv_s8_kernel", "56x56x64-3x3"),
    ("depthwise_s8_kernel", "56x56x144-3x3"),
    ("fake_quantize_kernel", "rows-of-weights"),
    ("backward_kernel", "rows-of-weights"),
    ("quantize_rows_kernel", "K4096"),
)
# Architectures that it shows, and the GPU of each that bounds are for.
GPUS = {"sm_80": "A100", "sm_90": "H100"}
HEADLINE, OURS, PINNED = "efficientnet_lite0 batch 1", "cpu-w8a8", "avx512-w8a8"


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite the tables of the README, or with ``--check`` say whether they are those of the results."""
    parser = argparse.ArgumentParser(prog="python -m bench.table", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if the README differs"
    )
    args = parser.parse_args(argv)
    old = README.read_text(encoding="utf-8")
    new = filled(old, RESULTS)
    if args.check:
        return int(new != old)
    README.write_text(new, encoding="utf-8")
    return 0


def filled(text: str, results: Path) -> str:
    """The text with every block between markers written anew from a folder of results.

    Raises:
        KeyError: a marker names no table.
    """
    return BLOCK.sub(lambda found: f"{found[1]}{TABLES[found[2]](results)}\n{found[3]}", text)


def headline(results: Path) -> str:
    """One sentence on speed and one on accuracy, each with its limit."""
    parts = []
    rows = [
        row for row in last_run(results / "network.jsonl") if row["case"] == HEADLINE and row["threads"] == 1
    ]
    for row in rows:
        if row["backend"] == OURS:
            parts.append(
                f"EfficientNet-Lite0 runs in int8 at **{row['images_per_s']:.0f} images/s** on one core of {_device(row)} "
                f"(batch 1), {_best(rows, PEERS) / row['us']:.1f} times the best that torch {row['torch']} does in float32 there "
                f"({_named(rows)})."
            )
    demo = _demo(results)
    if demo is not None:
        ours, fp32, n = demo["advanced"], demo["fp32"], demo["n"]
        parts.append(
            f"With its weights at {ours['bytes'] / fp32['bytes']:.3f} of their float32 bytes it agrees with the float network "
            f"on **{ours['agreement']:.1%}** of {n} images (top-1 {ours['top1']:.1%}, float {fp32['top1']:.1%}): "
            f"too few images for more than ± {_error(ours['agreement'], n):.0%}, and not ImageNet's."
        )
    return " ".join(parts) or _nothing("make bench` and `make demo")


def network(results: Path) -> str:
    """Images a second of whole networks, by case and threads; ours over the best peer, also where we lose."""
    rows = last_run(results / "network.jsonl")
    if not rows:
        return _nothing("make bench")
    backends = list(dict.fromkeys(row["backend"] for row in rows))
    # Heading -> ours, and what it is compared with; a comparison without peers in the results is left out.
    ours512 = PINNED if PINNED in backends else OURS
    without = [name for name in backends if name.endswith(WITHOUT_AMX)]
    int8 = [name for name in backends if name in INT8_PEERS]
    comparisons = {
        "w8a8 over best float32": (OURS, PEERS),
        "w8a8 over best int8": (OURS, int8),
        "AVX-512 w8a8 over best int8 without AMX": (ours512, without),
    }
    comparisons = {name: pair for name, pair in comparisons.items() if set(pair[1]) & set(backends)}
    lines = [("network", "threads", *backends, *comparisons)]
    for case, threads in dict.fromkeys((row["case"], row["threads"]) for row in rows):
        here = [row for row in rows if (row["case"], row["threads"]) == (case, threads)]
        of = {row["backend"]: row for row in here}
        rates = (f"{of[name]['images_per_s']:.1f}" if name in of else "" for name in backends)
        bests = ((_best(here, others), of[mine]["us"]) for mine, others in comparisons.values())
        lines.append(
            (case, str(threads), *rates, *("" if best is None else f"{best / us:.2f}x" for best, us in bests))
        )
    spread = max(row["spread"] for row in rows)
    return (
        f"{_markdown(lines)}\n\nImages a second. {_where(rows[0])}. One thread: CPU time, median; more: wall clock, best; "
        f"interleaved rounds, largest spread {spread:.0%}."
    )


def accuracy(results: Path) -> str:
    """EfficientNet-Lite0 by recipe, from ``make demo``."""
    demo = _demo(results)
    if demo is None:
        return _nothing("make demo")
    lines = [
        ("network", "top-1", "top-5", "agreement", "logit error", "weight bytes", "of float32", "all bytes")
    ]
    for name in ("fp32", "nearest", "light", "advanced"):
        row = demo[name]
        figures = (f"{row[key]:.3f}" for key in ("top1", "top5", "agreement", "logit_error"))
        share = f"{row['bytes'] / demo['fp32']['bytes']:.4f}"
        every = f"{row['all_bytes']:,}" if row["all_bytes"] else ""
        lines.append((name, *figures, f"{row['bytes']:,}", share, every))
    error = _error(demo["fp32"]["top1"], demo["n"])
    return (
        f"{_markdown(lines)}\n\nn = {demo['n']}, standard error of top-1 {error:.1%}. Fed the same codes, the integer network "
        f"and the fake-quantised one agree on {demo['integer_vs_fake_agreement']:.6f} of the codes at the worst site. "
        f"All of it took {demo['seconds']:.0f} s and {demo['peak_gib']:.2f} GiB."
    )


def targets(results: Path) -> str:
    """Every case of the accuracy suite: what its integer network scores, beside nearest rounding and float."""
    rows = last_run(results / "accuracy.jsonl")
    if not rows:
        return _nothing("python -m bench.run accuracy")
    head = (
        "network",
        "bits",
        "method",
        "judged on",
        "n",
        "top-1",
        "fp32",
        "nearest",
        "agreement",
        "nearest",
        "KL",
        "s",
    )
    lines: list[tuple[str, ...]] = [head]
    for of, protocol in dict.fromkeys((row["of_case"], row["protocol"]) for row in rows):
        here = {row["metric"]: row for row in rows if (row["of_case"], row["protocol"]) == (of, protocol)}
        one, top = here["agreement"], here.get("top1")
        bits = (
            f"{one['budget']:g} of float32"
            if one["budget"] is not None
            else f"W{one['weights']}A{one['inputs']}"
        )
        labelled = (
            ("", "", "")
            if top is None
            else (_share(top, "value"), _share(top, "fp32"), _share(top, "nearest"))
        )
        judged = f"{protocol}, {one['calibration_images']} calibrate"
        agreed = (f"{one['value']:.3f} ± {one['error']:.3f}", _share(one, "nearest"))
        figures = (f"{one['n']:,}", *labelled, *agreed, f"{here['kl']['value']:.3f}", f"{one['seconds']:.0f}")
        lines.append((one["network"], bits, one["method"], judged, *figures))
    return f"{_markdown(lines)}\n\nSeconds are those of quantising. {_where(rows[0])}."


def _share(row: Row, key: str) -> str:
    return "" if row[key] is None else f"{row[key]:.3f}"


def gpu_static(results: Path) -> str:
    """Kernels for GPUs as compiled: what was counted, and bounds."""
    found = last_run(results / "gpu_static.jsonl")
    if not found:
        return _nothing("python -m bench.run gpu_static")
    rows = {(row["kernel"], row["case"], row["target"]): row for row in found}
    own = ("registers", "shared KiB", "blocks", "tensor share", "bytes over least", "bound µs")
    lines = [("kernel", "case", *(f"{target} {name}" for target in GPUS for name in own))]
    for kernel, case in GPU_KERNELS:
        here = {target: rows.get((kernel, case, target)) for target in GPUS}
        if any(here.values()):
            cells = [cell for target, row in here.items() for cell in _compiled(row, GPUS[target], len(own))]
            (backend,) = {row["backend"] for row in here.values() if row}
            lines.append((f"{kernel} ({backend})", case, *cells))
    spilled, targets = sum(row["spills"] > 0 for row in found), len({row["target"] for row in found})
    first = found[0]
    return (
        f"{_markdown(lines)}\n\nCounted, never run on a GPU: {len(found)} kernels as compiled for {targets} targets are in "
        f"`bench/results/gpu_static.jsonl`, {spilled or 'none'} of them with spills; commit {first['commit']}, "
        f"{first['date'][:10]}, Triton {first['triton']}. Tensor share: of the instructions of the main loop. Bytes: those that all "
        "blocks ask for, over operands and results once. The bound is a lower bound from the published peaks of "
        f"{' and '.join(GPUS.values())}, and no prediction."
    )


def _compiled(row: Row | None, device: str, cells: int) -> Sequence[str]:
    """What is shown of a kernel on one target; empty cells where it does not ship there."""
    if row is None:
        return ("",) * cells
    share = row["tensor_share"]
    return (
        str(row["registers"]),
        f"{row['shared'] / 1024:.0f}",
        str(row["blocks"]),
        "" if not share else f"{share:.0%}",
        f"{row['bytes'] / row['bytes_minimum']:.1f}",
        f"{row['lower_bound_us'][device]:.1f}",
    )


TABLES: Mapping[str, Callable[[Path], str]] = {
    "headline": headline,
    "network": network,
    "accuracy": accuracy,
    "gpu_static": gpu_static,
    "targets": targets,
}


def _demo(results: Path) -> dict[str, Any] | None:
    path = results / "demo.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _best(rows: Sequence[Row], names: Sequence[str]) -> float | None:
    """Microseconds of the fastest of some backends; None where none of them was timed."""
    return min((row["us"] for row in rows if row["backend"] in names), default=None)


def _error(share: float, n: int) -> float:
    """Standard error of a share measured on ``n`` images."""
    return (share * (1 - share) / n) ** 0.5


def _device(row: Row) -> str:
    return f"an {row['device']}" if row["device"][:1] in "AEIO" else f"a {row['device']}"


def _named(rows: Sequence[Row]) -> str:
    """The peers that were there, for people."""
    names = [row["backend"].removeprefix("torch-") for row in rows if row["backend"] in PEERS]
    return ", ".join(names)


def _where(row: Row) -> str:
    return f"{row['device']} ({row['isa']}), torch {row['torch']}, commit {row['commit']}, {row['date'][:10]}"


def _nothing(command: str) -> str:
    return f"*Not measured yet: run `{command}`, then `python -m bench.table`.*"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *body = lines
    rule = ("---", *("---:" for _ in head[1:]))
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *body))


if __name__ == "__main__":
    sys.exit(main())
