"""The command line: parses, calls, prints. No algorithm lives here."""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from pyquant import zoo
from pyquant.capture import FAILURES
from pyquant.errors import CaptureError, DataError, PyquantError, ShapeError
from pyquant.files import read_batches
from pyquant.ops import backend as backends
from pyquant.pipeline import RECIPES, Recipe, quantize_model
from pyquant.runtime.net import deploy, load

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
    c.add_argument(
        "model",
        help=f"a zoo name ({', '.join(zoo.names())}) or module:function that returns the trained model",
    )
    c.add_argument(
        "--data",
        help="folder of images, .npz/.pt/.safetensors of inputs, or module:function; default: the zoo's own",
    )
    c.add_argument("--output", "-o", required=True, help="checkpoint to write, such as model.pq")
    c.add_argument(
        "--recipe", default="advanced", help=f"{', '.join(RECIPES)}, or w4a8 and the like for fixed bits"
    )
    c.add_argument(
        "--budget",
        type=float,
        help=f"bytes of weight codes over float32 weight bytes (default {BUDGET})",
    )
    c.add_argument(
        "--joint", action="store_true", help="the paper's choices: activations as wide as the weights"
    )
    c.add_argument(
        "--bits", action="append", default=[], metavar=SITE_BITS, help="pin a site; may be repeated"
    )
    c.add_argument(
        "--exclude", action="append", default=[], metavar="SITE", help="leave a site float; may be repeated"
    )

    c = add(
        "show", _show, "Show what is in a checkpoint: ops, bits, bytes, and the share that runs in integers."
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


def _add_engine(command: argparse.ArgumentParser) -> None:
    command.add_argument("--backend", default="auto", help=BACKEND)
    command.add_argument("--threads", type=int, default=None)
    command.add_argument("--device", help=DEVICE)


# ---------------------------------------------------------------------------------------------------------------- commands
def _quantize(args: argparse.Namespace) -> None:
    output = Path(args.output)
    _check_output(output)
    recipe = recipe_from(args.recipe, args.budget, args.joint)
    bits = dict(_site_bits(item) for item in args.bits)
    model = _load_model(args.model)
    data = _load_data(args.data, args.model)
    begin = time.perf_counter()
    with progress_bar() as progress, _no_dumps():
        q = quantize_model(model, data, recipe, bits=bits, exclude=args.exclude, progress=progress())
    net = deploy(q)
    net.save(output)
    sizes = net.sizes
    console.print(
        f"wrote {output}: {sizes['weights']:,} bytes of weight codes, {sizes['weights'] / sizes['float_weights']:.4f} of float32, "
        f"{len(q.graph.sites)} sites, {time.perf_counter() - begin:.0f} s",
        highlight=False,
        soft_wrap=True,
    )


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
    # Whole cells, however narrow the terminal: names are what --bits and --exclude take.
    wide = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    Console(width=max(wide, console.width)).print(table)
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
def recipe_from(name: str, budget: float | None, joint: bool) -> Recipe:
    """A recipe by name, or fixed bits written ``w4a8``, which take no budget.

    Raises:
        DataError: no such recipe, or a budget for fixed bits. BudgetError, GridError: as of :class:`Recipe`.
    """
    if name in RECIPES:
        return RECIPES[name](BUDGET if budget is None else budget, None if joint else 8)
    widths = name.lower().removeprefix("w").split("a")
    if name.lower().startswith("w") and len(widths) == 2 and all(w.isdecimal() for w in widths):
        if budget is not None or joint:
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


# What somebody else's module or function raises.
RAISED = (*FAILURES, ImportError, OSError, SyntaxError)


def _entry(text: str) -> Any:
    """Import ``module:function`` and call it; a generator is read here, where what it raises can be told."""
    module, _, function = text.partition(":")
    sys.path.insert(0, "")
    try:
        try:
            made = getattr(importlib.import_module(module), function)
        except RAISED as error:
            raise DataError(
                f"{text!r} could not be imported: {_reason(error)}; write module:function, importable from here."
            ) from error
        if not callable(made):
            raise DataError(f"{text!r} is a {type(made).__name__}; name a function without arguments.")
        try:
            made = made()
            return list(made) if isinstance(made, Iterator) else made
        except RAISED as error:
            raise DataError(f"{text!r} raised {_reason(error)}; it is called without arguments.") from error
    finally:
        sys.path.remove("")


def _reason(error: Exception) -> str:
    """Type and first line of what somebody else's code raised."""
    first = str(error).strip().partition("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _load_model(name: str) -> torch.nn.Module:
    model = _entry(name) if ":" in name else zoo.load(name)
    if not isinstance(model, torch.nn.Module):
        raise DataError(
            f"{name!r} returned a {type(model).__name__}; it must return the trained torch.nn.Module."
        )
    return model


def _load_data(source: str | None, model: str) -> Any:
    if source is None:
        if ":" in model:
            raise DataError(
                f"the model {model!r} needs --data: a folder of images, a file of inputs, or module:function."
            )
        return zoo.calibration(model)
    if ":" not in source or Path(source).exists():
        return read_batches(Path(source))
    data = _entry(source)
    if not isinstance(data, Iterable):
        raise DataError(f"{source!r} returned a {type(data).__name__}; it must return batches of inputs.")
    return data


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
