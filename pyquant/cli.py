"""The command line: parses, calls, prints. No algorithm lives here."""

from __future__ import annotations

import argparse
import io
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from pyquant import zoo
from pyquant.allocation import NAMES
from pyquant.data import read_once
from pyquant.diagnosis import diagnose
from pyquant.entries import load_data, load_model
from pyquant.errors import CaptureError, DataError, PyquantError, ShapeError
from pyquant.ops import backend as backends
from pyquant.pipeline import RECIPES, Recipe, pareto, quantize_model
from pyquant.runtime.net import deploy, load
from pyquant.tables import curve_table, site_table

console = Console()
SITE_BITS = "SITE=W,A"
BUDGET = 0.13
BACKEND = f"auto, {', '.join(backends.BACKENDS)}"
DEVICE = "cpu, cuda or cuda:N; default: a GPU for the triton and cuda backends, and else the CPU"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, or 1 after one sentence on stderr."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except PyquantError as error:
        # A message may hold brackets, which rich would take for its markup.
        Console(stderr=True).print(
            f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True
        )
        return 1
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped; no file was written.")
        return 130
    except BrokenPipeError:
        # Whoever read the output has seen enough, as in `pyquant show net.pq | head`; rich below 13.8 leaves that to us.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pyquant", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, run: Callable[[argparse.Namespace], None], help_line: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help_line, description=help_line)
        command.set_defaults(run=run)
        return command

    c = add("quantize", _quantize, "Quantise a trained model and write one checkpoint.")
    _add_model(c)
    c.add_argument("--output", "-o", required=True, help="checkpoint to write, such as model.pq")
    c.add_argument(
        "--max-degradation", type=float, metavar="X", help="the least cost that is predicted to lose less"
    )
    c.add_argument("--report", action="store_true", help="look at every site, for `pyquant report`")

    c = add("pareto", _pareto, "The best plan at each of several budgets, from one study of the model.")
    _add_model(c)
    c.add_argument("--at", required=True, metavar="X,Y", help="the budgets of --cost, such as 0.13,0.16,0.2")
    c.add_argument("--measure", action="store_true", help="run each plan too")
    c = add("report", _report, "Say what each site loses, and what to do; of `quantize --report`.")
    c.add_argument("checkpoint")

    c = add(
        "show", _show, "Show what a checkpoint holds: ops, bits, bytes, and the share that runs in integers."
    )
    c.add_argument("checkpoint")
    c.add_argument("--batch", type=int, default=1, help="on a GPU: of which batch to name the kernels")
    c.add_argument("--backend", default="auto", help=BACKEND)
    c.add_argument("--device", help=DEVICE)

    c = add("evaluate", _evaluate, "Top-1, top-5 and agreement with the float model.")
    c.add_argument("checkpoint")
    c.add_argument("model", help="a zoo name: it brings the float model and the labelled images")
    c.add_argument("--limit", type=int, help="evaluate on the first so many images")
    _add_engine(c)

    c = add("bench", _bench, "Time a checkpoint on random inputs.")
    c.add_argument("checkpoint")
    c.add_argument("--batch", type=int, default=1)
    c.add_argument("--rounds", type=int, default=20)
    _add_engine(c)

    add("backends", _backends, "Say which backends can run here, and what the others miss.")
    return parser


def _add_model(command: argparse.ArgumentParser) -> None:
    """What `quantize` and `pareto` take."""
    add = command.add_argument
    names = ", ".join(zoo.names())
    add("model", help=f"a zoo name ({names}) or module:function that returns the trained model")
    kinds = "folder of images, .npz/.pt/.safetensors of inputs, or module:function"
    add("--data", help=f"{kinds}; default: the zoo's own")
    add("--recipe", default="advanced", help=f"{', '.join(RECIPES)}, or w4a8 and the like for fixed bits")
    several = f"NAME=X for another cost ({', '.join(NAMES)}); may be repeated"
    shares = f"bytes of weight codes over float32 weight bytes (default {BUDGET}), or {several}"
    add("--budget", action="append", default=[], type=_budget, metavar="[NAME=]X", help=shares)
    add("--cost", default="weight_bytes", help="what --max-degradation makes least, or `pareto` limits")
    add("--joint", action="store_true", help="the paper's choices: activations as wide as the weights")
    add("--input-bits", metavar="A,B", help="widths of activations to choose from, such as 4,6,8")
    add("--tie", action="append", default=[], metavar="SITE,SITE", help="sites of equal bits; repeatable")
    add("--bits", action="append", default=[], metavar=SITE_BITS, help="pin a site; may be repeated")
    add("--exclude", action="append", default=[], metavar="SITE", help="leave a site float; may be repeated")
    add("--cache", metavar="FOLDER", help="keep what is measured, so that a run that was killed goes on")


def _budget(text: str) -> tuple[str, float]:
    """``0.13`` of the weights has no name; ``NAME=X`` has."""
    name, _, number = text.rpartition("=")
    return name, float(number)


def _add_engine(command: argparse.ArgumentParser) -> None:
    command.add_argument("--backend", default="auto", help=BACKEND)
    command.add_argument("--threads", type=int, default=None)
    command.add_argument("--device", help=DEVICE)


# ---------------------------------------------------------------------------------------------------------------- commands
def _quantize(args: argparse.Namespace) -> None:
    output = Path(args.output)
    _check_output(output)
    recipe = _recipe(args, args.max_degradation, BUDGET)
    bits = dict(_site_bits(item) for item in args.bits)
    model = load_model(args.model)
    data = read_once(load_data(args.data, args.model))
    begin = time.perf_counter()
    with progress_bar() as progress, _no_dumps():
        given = {"bits": bits, "exclude": args.exclude, "cache": args.cache}
        q = quantize_model(model, data, recipe, **given, progress=progress())
    net = deploy(q)
    if args.report:
        net.info["report"] = diagnose(q, data, method=recipe.method).as_json()
    net.save(output)
    for entry in q.log:
        if entry["step"] == "allocate":
            console.print(_allocated(entry), highlight=False, soft_wrap=True)
    sizes = net.sizes
    console.print(
        f"wrote {output}: {sizes['weights']:,} bytes of weight codes, {sizes['weights'] / sizes['float_weights']:.4f} of float32, "
        f"{len(q.graph.sites)} sites, {time.perf_counter() - begin:.0f} s",
        highlight=False,
        soft_wrap=True,
    )


def _allocated(entry: Mapping[str, Any]) -> str:
    """What the integer programme said, and what of it was measured."""
    checked, costs = entry["additivity"], ", ".join(f"{name} {n:,}" for name, n in entry["costs"].items())
    binds = " and ".join(entry["binding"]) or "no limit"
    return (
        f"bits: {entry['status']} (gap {entry['gap']:.0e}), {costs}; {binds} binds; divergence predicted "
        f"{checked['predicted']:.4g}, measured {checked['measured']:.4g} before learning"
    )


def _pareto(args: argparse.Namespace) -> None:
    try:
        budgets = [float(text) for text in args.at.split(",")]
    except ValueError:
        raise DataError(f"--at {args.at!r} is no list of numbers; write for example 0.13,0.16,0.2.") from None
    recipe, model = _recipe(args, None, 1.0), load_model(args.model)
    data = load_data(args.data, args.model)
    bits = dict(_site_bits(item) for item in args.bits)
    with progress_bar() as progress, _no_dumps():
        given = {"bits": bits, "exclude": args.exclude, "cache": args.cache, "measure": args.measure}
        rows = pareto(model, data, recipe, budgets, cost=args.cost, **given, progress=progress())
    _print_wide(curve_table(rows, args.cost))
    for row in rows:
        if row["status"] == "infeasible":
            console.print(escape(row["why"]), highlight=False, soft_wrap=True)


def _report(args: argparse.Namespace) -> None:
    report = load(args.checkpoint).info.get("report")
    if report is None:
        raise DataError(f"{args.checkpoint} has no report; quantise with --report.")
    _print_wide(site_table(report))
    for sentence in (*(site["advice"] for site in report["sites"]), report["summary"]):
        if sentence:
            console.print(escape(sentence), highlight=False, soft_wrap=True)


def _print_wide(table: Table) -> None:
    """Whole cells, however narrow the terminal: names are what --bits and --exclude take."""
    wide = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    Console(width=max(wide, console.width)).print(table)


def _check_output(output: Path) -> None:
    """Find before the work what would fail after it."""
    if not output.parent.is_dir():
        raise DataError(f"the folder {str(output.parent)!r} does not exist; create it, or write elsewhere.")
    if output.is_dir():
        raise DataError(f"--output {str(output)!r} is a folder; give the file to write, such as model.pq.")
    if output.exists() and not output.is_file():
        # Saving replaces what is there, /dev/null too.
        raise DataError(f"--output {str(output)!r} is no plain file; give a file to write, such as model.pq.")
    try:
        # Permissions alone tell root nothing, so a file of the length of name that save takes is made and removed.
        tempfile.NamedTemporaryFile(dir=output.parent, prefix=f".{output.name}.", suffix=".part").close()
    except OSError as error:
        raise DataError(
            f"--output {str(output)!r} cannot be written: {error.strerror}; write elsewhere."
        ) from error


@contextmanager
def _no_dumps() -> Iterator[None]:
    """Keep the graphs that torch.export prints when it fails off stderr; the error says what was wrong."""
    held, logger = io.StringIO(), logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stderr(held):
            yield
    except CaptureError:
        held = io.StringIO()
        raise
    finally:
        logger.setLevel(level)
        sys.stderr.write(held.getvalue())


def _show(args: argparse.Namespace) -> None:
    _check_batch(args)
    net = load(args.checkpoint, backend=args.backend, device=args.device)
    rows = net.describe(args.batch)
    table = Table()
    for key in rows[0]:
        table.add_column(key.replace("_", " "), no_wrap=True)
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    _print_wide(table)
    share, sizes = net.share(), net.sizes
    console.print(
        f"ops: {share['integer']} in integers, {share['float']} in float ({share['share']:.1%} integer), {share['boundary']} to "
        f"quantise or dequantise; bytes: {sizes['weights']:,} of weight codes, {sizes['total']:,} in all.",
        highlight=False,
        soft_wrap=True,
    )


def _evaluate(args: argparse.Namespace) -> None:
    if args.limit is not None and args.limit < 1:
        raise DataError(f"--limit {args.limit} leaves no image; give 1 or more.")
    net = load(args.checkpoint, backend=args.backend, threads=args.threads, device=args.device)
    model = zoo.load(args.model)
    images, accepted = zoo.evaluation(args.model)
    images, accepted = images[: args.limit], accepted[: args.limit]
    with torch.no_grad():
        float_scores = torch.cat([model(batch) for batch in images.split(64)])
        outputs = [net(batch.to(net.device)) for batch in images.split(64)]
    found = [y.cpu() for y in outputs if isinstance(y, torch.Tensor)]
    if len(found) < len(outputs):
        raise DataError(
            f"{args.checkpoint} has several outputs, and {args.model} has one; give its own checkpoint."
        )
    scores = torch.cat(found)
    if scores.shape != float_scores.shape:
        raise ShapeError(
            f"{args.checkpoint} gives {list(scores.shape)} and {args.model} {list(float_scores.shape)}; give its own checkpoint."
        )
    table = Table("network", "top-1", "top-5", "agreement", "n")
    for name, s in (("float32", float_scores), (Path(args.checkpoint).name, scores)):
        agreement = (s.argmax(1) == float_scores.argmax(1)).float().mean().item()
        top = (zoo.accuracy(s, accepted, k) for k in (1, 5))
        table.add_row(name, *(f"{value:.4f}" for value in top), f"{agreement:.4f}", str(len(accepted)))
    console.print(table)


def _bench(args: argparse.Namespace) -> None:
    _check_batch(args)
    if args.rounds < 1:
        raise DataError(f"--rounds {args.rounds} leaves nothing to time; give 1 or more.")
    net = load(args.checkpoint, backend=args.backend, threads=args.threads, device=args.device)
    generator = torch.Generator().manual_seed(0)
    shapes = [net.program.values[name].shape for name in net.program.inputs]
    inputs = [torch.randn(args.batch, *shape, generator=generator).to(net.device) for shape in shapes]
    net(*inputs)
    _finish(net.device)
    seconds = []
    for _ in range(args.rounds):
        begin = time.perf_counter()
        net(*inputs)
        _finish(net.device)
        seconds.append(time.perf_counter() - begin)
    middle = statistics.median(seconds)
    console.print(
        f"batch {args.batch}: median {middle * 1e3:.2f} ms, best {min(seconds) * 1e3:.2f} ms, {args.batch / middle:.1f} images/s "
        f"({net.choice})",
        highlight=False,
        soft_wrap=True,
    )


def _check_batch(args: argparse.Namespace) -> None:
    if args.batch < 1:
        raise DataError(f"--batch {args.batch} holds no sample; give 1 or more.")


def _finish(device: torch.device) -> None:
    """Wait for a GPU, which a call only puts work to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _backends(args: argparse.Namespace) -> None:
    table = Table("backend", "here", "why")
    for name in backends.BACKENDS:
        why = backends.missing(name)
        table.add_row(name, "yes" if why is None else "no", why or "")
    console.print(table)


# -------------------------------------------------------------------------------------------------------------- arguments
def _recipe(args: argparse.Namespace, max_degradation: float | None, budget: float) -> Recipe:
    """A recipe by name with its limits, of which ``budget`` is one where no other is, or fixed bits written ``w4a8``.

    Raises:
        DataError: no such recipe, or limits for fixed bits. BudgetError, GridError, SiteError: as of :class:`Recipe`.
    """
    name, budgets = args.recipe, dict(args.budget)
    inputs: Any = None if args.joint else 8
    if args.input_bits is not None:
        widths = args.input_bits.split(",")
        if args.joint or not all(w.strip().isdecimal() for w in widths):
            raise DataError(
                f"--input-bits {args.input_bits!r} are no widths of their own; write 4,6,8, and no --joint beside it."
            )
        inputs = [int(w) for w in widths]
    if name in RECIPES:
        share = budgets.pop("", None)
        limited = budgets or max_degradation is not None
        ties = tuple(tuple(item.split(",")) for item in args.tie)
        limits = {"budgets": budgets, "max_degradation": max_degradation, "cost": args.cost, "ties": ties}
        return RECIPES[name](budget if share is None and not limited else share, inputs, **limits)
    widths = name.lower().removeprefix("w").split("a")
    if name.lower().startswith("w") and len(widths) == 2 and all(w.isdecimal() for w in widths):
        if budgets or args.joint or args.input_bits or args.tie or max_degradation is not None:
            raise DataError(
                f"recipe {name!r} fixes all bits, so --budget and --joint mean nothing; drop them."
            )
        return Recipe.fixed(int(widths[0]), int(widths[1]))
    raise DataError(f"recipe {name!r} is unknown; use {', '.join(RECIPES)}, or fixed bits such as w4a8.")


def _site_bits(item: str) -> tuple[str, tuple[int, int]]:
    site, _, widths = item.rpartition("=")
    pair = widths.split(",")
    if not site or len(pair) != 2 or not all(w.strip().isdecimal() for w in pair):
        raise DataError(f"--bits {item!r} is not {SITE_BITS}; write for example --bits fc=8,8.")
    return site, (int(pair[0]), int(pair[1]))


@contextmanager
def progress_bar() -> Iterator[Callable[..., Callable[[str, int, int], None]]]:
    """A progress bar for each stage; yields a function that, given a label, makes the callback that moves its bars."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, Any] = {}

        def labelled(label: str = "") -> Callable[[str, int, int], None]:
            def move(stage: str, done: int, total: int) -> None:
                name = f"{label}: {stage}" if label else stage
                if name not in tasks:
                    tasks[name] = progress.add_task(name, total=total)
                progress.update(tasks[name], completed=done, total=total)

            return move

        yield labelled


if __name__ == "__main__":
    sys.exit(main())
