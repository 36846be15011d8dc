"""Tables of reports, for a terminal: what each site loses, and the best plan at each of several budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table


def site_table(report: Mapping[str, Any]) -> Table:
    """A row a site, of what ``Diagnosis.as_json`` gives; decibels of what has no error are left empty."""
    table = Table()
    for title in (
        "site",
        "W",
        "A",
        "SNR weights",
        "inputs",
        "output",
        "in network",
        "range",
        "moves",
        "engine",
        "gain",
    ):
        table.add_column(title, no_wrap=True, justify="left" if title in ("site", "engine") else "right")
    for site in report["sites"]:
        decibels = (
            site["weight_snr"],
            site["input_snr"],
            site["output_snr"],
            site["network_snr"],
        )
        table.add_row(
            site["site"],
            str(site["weight_bits"]),
            str(site["input_bits"]),
            *("" if value is None else f"{value:.1f}" for value in decibels),
            f"{site['low']:.3g} to {site['high']:.3g}",
            f"{site['moves']:.3g}",
            site["engine"] or "",
            "" if site["gain"] is None else f"{site['gain']:.2f}",
        )
    return table


def curve_table(rows: Sequence[Mapping[str, Any]], cost: str) -> Table:
    """A row a budget, of what ``pareto`` gives."""
    costs = [cost, *sorted({name for row in rows for name in row.get("costs", {})} - {cost})]
    measured = any("measured" in row for row in rows)
    table = Table(
        "budget", *costs, "predicted", *(["measured", "agreement"] if measured else []), "status", "binding"
    )
    for row in rows:
        if row["status"] == "infeasible":
            table.add_row(f"{row['budget']:g}", *[""] * (len(table.columns) - 3), row["status"], "")
            continue
        agreement = row.get("agreement")
        extra = (
            [f"{row['measured']:.4g}", "" if agreement is None else f"{agreement:.3f}"] if measured else []
        )
        status = row["status"] if row["status"] == "optimal" else f"{row['status']}, gap {row['gap']:.1e}"
        table.add_row(
            f"{row['budget']:g}",
            *(f"{row['costs'][name]:,}" for name in costs),
            f"{row['degradation']:.4g}",
            *extra,
            status,
            ", ".join(row["binding"]),
        )
    return table
