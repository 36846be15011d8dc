"""Runs a suite: ``python -m bench.run network``. Correctness first, then time; rows go to ``bench/results/<suite>.jsonl``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from bench import (
    accuracy,
    conv_s8,
    fake_quantize,
    gemm_s8,
    gemm_w4a8,
    gpu,
    gpu_static,
    latency,
    limits,
    network,
    paper,
)
from bench.plot import plot
from bench.record import MACHINE, RESULTS, Row, append, machine
from bench.resumed import Study, resumed
from bench.timing import keep_memory
from pyquant.errors import PyquantError
from pyquant.ops.backend import missing

# A suite yields rows for some thread counts; quick takes fewer cases and rounds, peers brings in other engines.
SUITES: Mapping[str, Callable[[Sequence[int], bool, bool], Iterator[Row]]] = {
    "limits": limits.rows,
    "network": network.rows,
    "latency": latency.rows,
    "conv_s8": conv_s8.rows,
    "gemm_s8": gemm_s8.rows,
    "gemm_w4a8": gemm_w4a8.rows,
    "fake_quantize": fake_quantize.rows,
    "gpu": gpu.rows,
    "gpu_static": gpu_static.rows,
}
# Suites that run nothing: what takes the place of the machine in their rows, and their table.
STATIC: Mapping[str, tuple[Callable[[], Row], Callable[[Sequence[Row]], Table]]] = {
    "gpu_static": (gpu_static.built, gpu_static.table)
}
# Suites of long cases: their rows are kept as they come, and cases of the same commit that the file has are not run again.
RESUMED: Mapping[str, Study] = {"accuracy": accuracy, "paper": paper}
THREADS = {"limits": (1, 2), "network": (1, 2), "accuracy": (2,), "paper": (2,)}
NAMES = ("suite", "case", "backend", "threads")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one suite, print its table, append its rows; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("suite", choices=(*SUITES, *RESUMED))
    parser.add_argument("--json", type=Path, help="append rows here instead of bench/results/<suite>.jsonl")
    parser.add_argument("--threads", type=int, help="measure with so many threads only")
    parser.add_argument(
        "--quick", action="store_true", help="fewer cases and rounds; rows are kept only with --json"
    )
    parser.add_argument(
        "--peers", action="store_true", help="also time other engines, where installed: make peers"
    )
    args = parser.parse_args(argv)
    if args.threads is not None and args.threads < 1:
        parser.error(f"--threads {args.threads}: use 1 or more.")
    on_gpu = args.suite == "gpu"
    if on_gpu and gpu.absent() is not None:
        parser.exit(0, f"{gpu.absent()}\n")
    about, table = STATIC.get(args.suite, (machine, _table))
    why = None if on_gpu or args.suite in STATIC else missing("cpu")
    if why is not None:
        parser.exit(1, f"nothing to time: {why}.\n")
    keep_memory()
    where = about()
    if on_gpu:
        where |= gpu.about(gpu.here())
    path = None if args.quick and args.json is None else args.json or RESULTS / f"{args.suite}.jsonl"
    threads = (args.threads,) if args.threads is not None else THREADS.get(args.suite, (1,))
    before, rows, stopped = torch.get_num_threads(), [], None
    console = Console(width=max(200, Console().width))
    try:
        for measured in _measured(args, threads, path, where):
            rows.append(measured)
            why = f": {measured['why']}" if measured.get("why") else ""
            console.print(f"{measured['case']}: {measured['backend']}{why}", highlight=False, markup=False)
    except (PyquantError, KeyboardInterrupt) as error:
        # A GPU is often someone else's, and may not be there tomorrow: its rows are kept as far as they go.
        stopped = str(error) or "Interrupted."
        if not on_gpu or not rows:
            parser.exit(1, f"{stopped}\n")
    finally:
        torch.set_num_threads(before)
    console.print(table(rows))
    if path is not None and args.suite == "paper":
        try:
            paper.plot(rows, path.with_suffix(".svg"))
        except PyquantError as error:
            parser.exit(1, f"{error}\n")
    if path is not None and args.suite not in RESUMED:
        append(path, rows)
        drawn = plot(rows) if on_gpu else None
        if drawn is not None:
            path.with_suffix(".svg").write_text(drawn, encoding="utf-8")
    wrong = [f"{row['case']} {row['backend']}" for row in rows if gpu.WRONG in (row.get("why") or "")]
    if stopped or wrong:
        parser.exit(1, f"{stopped or 'not the bytes of the reference: ' + ', '.join(wrong) + '.'}\n")
    return 0


def _measured(
    args: argparse.Namespace, threads: Sequence[int], path: Path | None, where: Row
) -> Iterator[Row]:
    """Rows of a suite as they come."""
    if args.suite in RESUMED:
        yield from resumed(args.suite, RESUMED[args.suite], threads, args.quick, path, where)
        return
    for measured in SUITES[args.suite](threads, args.quick, args.peers):
        yield {"suite": args.suite, **measured, **where}


def _figures(row: Row) -> list[str]:
    return [key for key in row if key not in (*NAMES, *MACHINE, *gpu.SOFTWARE)]


def _table(rows: Sequence[Row]) -> Table:
    figures = list(dict.fromkeys(key for row in rows for key in _figures(row) if row[key] not in (None, {})))
    columns = (*NAMES[1:], *figures)
    title = f"{rows[0]['suite']} on {rows[0]['device']} ({rows[0]['isa']}), torch {rows[0]['torch']}, {rows[0]['commit']}"
    table = Table(title=title)
    for key in columns:
        table.add_column(
            {"peers": "nearest peer"}.get(key, key.replace("_", " ")),
            no_wrap=key in ("case", "backend", "clock", "peers"),
            justify="left" if key in NAMES else "right",
        )
    for row in rows:
        table.add_row(*(_cell(row.get(key)) for key in columns))
    return table


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        # The nearest one; the file has them all.
        name = min(value, key=value.__getitem__, default=None)
        return "" if name is None else f"{name} {value[name]:.2f}x"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
