"""Exact bit allocation, twice and slowly: every plan in turn, and a dynamic programme for many sites.

Independent of pyquant: plain tuples in, no solver, no floating-point comparison of totals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import product

import numpy as np

Candidate = tuple[tuple[int, int], Fraction, tuple[int, ...]]


def every_plan(
    sites: Sequence[Sequence[Candidate]], allowed: Callable[[list[tuple[int, int]]], bool]
) -> Iterator[tuple[Fraction, list[int]]]:
    """Yield degradation and cost totals of every plan whose list of bits is allowed.

    Args:
        sites: per site its candidates ``(bits, degradation, costs)``.
        allowed: says whether the bits of all sites together keep the ties.
    """
    for plan in product(*sites):
        if allowed([bits for bits, _, _ in plan]):
            yield sum(d for _, d, _ in plan), [sum(column) for column in zip(*(c for _, _, c in plan), strict=True)]


def least_objective(objective: np.ndarray, weight: np.ndarray, cap: int) -> float:
    """Return the least objective of one choice a site with the summed weight at most ``cap``; inf if none.

    A dynamic programme over sites on undominated (weight, objective) pairs. A pair goes when even the best
    fractional completion, at the price per weight that makes that bound highest, is worse than a known plan.

    Args:
        objective: ``[sites, choices]`` float64, 0 or more.
        weight: ``[sites, choices]`` int64, 0 or more.
        cap: the largest summed weight; exact below 2^63.
    """
    rows = np.arange(len(weight))
    lowest = weight.min(1)
    if lowest.sum() > cap:
        return np.inf
    price, known = _price(objective, weight, cap)
    if price == 0.0:
        return objective.min(1).sum()
    # Sites whose choice is least certain come first: their pairs are pruned by the most exact bounds.
    priced = objective + price * weight
    order = np.argsort(np.partition(priced, 1, axis=1)[:, 1] - priced.min(1))
    lowest_after = np.append(np.cumsum(lowest[order][::-1])[::-1], 0)
    priced_after = np.append(np.cumsum(priced.min(1)[order][::-1])[::-1], 0.0)
    used, lost = np.zeros(1, np.int64), np.zeros(1)
    for step, site in enumerate(rows[order], start=1):
        used = (used[:, None] + weight[site]).ravel()
        lost = (lost[:, None] + objective[site]).ravel()
        bound = lost + priced_after[step] - price * (cap - used)
        # The slack of 1e-9 covers the rounding of the bound, never of a weight.
        keep = (used + lowest_after[step] <= cap) & (bound <= known * (1 + 1e-9))
        used, lost = used[keep], lost[keep]
        by_weight = np.lexsort((lost, used))
        used, lost = used[by_weight], lost[by_weight]
        best_before = np.append(np.inf, np.minimum.accumulate(lost)[:-1])
        used, lost = used[lost < best_before], lost[lost < best_before]
    return lost.min()


def _price(objective: np.ndarray, weight: np.ndarray, cap: int) -> tuple[float, float]:
    """Return the price per weight at which the cheapest plan just keeps the cap, and a plan's objective."""
    rows = np.arange(len(weight))

    def at(price: float) -> tuple[int, float]:
        chosen = np.lexsort((weight, objective + price * weight))[:, 0]
        return int(weight[rows, chosen].sum()), float(objective[rows, chosen].sum())

    if at(0.0)[0] <= cap:
        return 0.0, at(0.0)[1]
    low, high = 0.0, 1e-12
    while at(high)[0] > cap:
        low, high = high, high * 4
    for _ in range(200):
        middle = (low + high) / 2
        if at(middle)[0] > cap:
            low = middle
        else:
            high = middle
    return high, at(high)[1]
