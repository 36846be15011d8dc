"""Draws throughput over the rows of a batch as one SVG file, a panel for each layer; of measured products only."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence

from bench.record import Row

COLOURS = ("#1b6ca8", "#d1495b", "#2e933c", "#edae49", "#6c4ab6", "#555555", "#00a6a6", "#a0522d")
WIDTH, HEIGHT, MARGIN, COLUMNS = 360, 240, 48, 2
CASE = re.compile(r"M(\d+) N(\d+) K(\d+)")


def plot(rows: Sequence[Row]) -> str | None:
    """The file's text; None where no product was measured.

    Args:
        rows: of the suite ``gpu``: ``case`` as ``"M1 N4096 K4096"``, ``backend``, ``tops``, and what the machine was. Rows of
            anything else, and rows without a figure, are left out.
    """
    panels: dict[tuple[str, str], dict[str, list[tuple[int, float]]]] = {}
    for row in rows:
        found = CASE.fullmatch(row["case"])
        if found is not None and row["tops"] is not None:
            m, n, k = found.groups()
            panels.setdefault((n, k), {}).setdefault(row["backend"], []).append((int(m), row["tops"]))
    if not panels:
        return None
    names = dict.fromkeys(name for curves in panels.values() for name in curves)
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    lines = -(-len(panels) // COLUMNS)
    body = [
        _panel(f"N={n}, K={k}", curves, colours, i % COLUMNS * WIDTH, 60 + i // COLUMNS * HEIGHT)
        for i, ((n, k), curves) in enumerate(panels.items())
    ]
    first = rows[0]
    head = f"TOPS measured on {first['device']} ({first['isa']}), cold L2, commit {first['commit']}, {first['date'][:10]}"
    key = "".join(
        f'<circle cx="{16 + 110 * i}" cy="40" r="4" fill="{colour}"/>{_text(24 + 110 * i, 44, name)}'
        for i, (name, colour) in enumerate(colours.items())
    )
    size = max(COLUMNS * WIDTH, 24 + 110 * len(colours)), 60 + lines * HEIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="white"/>{_text(12, 20, head)}{key}{"".join(body)}</svg>\n'
    )


def _panel(
    title: str, curves: dict[str, list[tuple[int, float]]], colours: dict[str, str], left: int, top: int
) -> str:
    ms = sorted({m for points in curves.values() for m, _ in points})
    most = max(tops for points in curves.values() for _, tops in points)
    first, span = math.log2(ms[0]), max(1.0, math.log2(ms[-1]) - math.log2(ms[0]))
    width, height = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN

    def at(m: int, tops: float) -> str:
        x = left + MARGIN + (math.log2(m) - first) / span * width
        return f"{x:.1f},{top + MARGIN + height * (1 - tops / most):.1f}"

    base = top + MARGIN + height
    parts = [
        _text(left + MARGIN, top + MARGIN - 8, title),
        f'<path d="M{left + MARGIN},{top + MARGIN}V{base}H{left + MARGIN + width}" fill="none" stroke="#999"/>',
        _text(left + 8, top + MARGIN + 4, f"{most:.4g}"),
        _text(left + MARGIN - 12, base + 4, "0"),
        *(_text(float(at(m, 0).split(",")[0]) - 6, base + 16, f"{m}") for m in ms),
        _text(left + MARGIN + width // 2 - 24, base + 32, "rows (M)"),
    ]
    for name, points in curves.items():
        where = [at(m, tops) for m, tops in sorted(points)]
        parts.append(
            f'<polyline points="{" ".join(where)}" fill="none" stroke="{colours[name]}" stroke-width="2"/>'
        )
        parts += [
            f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colours[name]}"/>'
            for x, y in (p.split(",") for p in where)
        ]
    return "".join(parts)


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}">{html.escape(text)}</text>'
