"""Exact bit allocation, slowly: every plan in turn, and dynamic programmes for one budget and for two.

Independent of pyquant: plain tuples and arrays in, no solver.
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
            yield (
                sum(d for _, d, _ in plan),
                [sum(column) for column in zip(*(c for _, _, c in plan), strict=True)],
            )


def least_objective(objective: np.ndarray, weight: np.ndarray, cap: int) -> float:
    """Return the least objective of one choice a site with the summed weight at most ``cap``; inf if none.

    A dynamic programme over sites on undominated (weight, objective) pairs. A pair goes when even the best
    fractional completion, at the price per weight that makes that bound highest, is worse than a known plan.

    Args:
        objective: ``[sites, choices]`` float64, 0 or more.
        weight: ``[sites, choices]`` int64, 0 or more.
        cap: the largest summed weight; exact below 2^63.
    """
    lowest = weight.min(1)
    if lowest.sum() > cap:
        return np.inf
    price, chosen = _price(objective, weight, cap)
    if price == 0.0:
        return objective.min(1).sum()
    # Sites whose choice is least certain come first: their pairs are pruned by the most exact bounds.
    known = _filled(objective, weight, cap, chosen)
    priced = objective + price * weight
    order = np.argsort(np.partition(priced, 1, axis=1)[:, 1] - priced.min(1))
    lowest_after = np.append(np.cumsum(lowest[order][::-1])[::-1], 0)
    priced_after = np.append(np.cumsum(priced.min(1)[order][::-1])[::-1], 0.0)
    used, lost = np.zeros(1, np.int64), np.zeros(1)
    for step, site in enumerate(order, start=1):
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


def least_under_two_caps(objective: np.ndarray, weights: np.ndarray, caps: tuple[int, int]) -> float:
    """Return the least objective of one choice a site under two caps; inf if none.

    The textbook table over every pair of spent amounts, nothing pruned: for small whole weights only.

    Args:
        objective: ``[sites, choices]`` float64.
        weights: ``[sites, choices, 2]`` whole numbers, 0 or more.
        caps: the largest summed weights.
    """
    best = np.zeros((caps[0] + 1, caps[1] + 1))
    for of_choice, spent in zip(objective, weights, strict=True):
        after = np.full_like(best, np.inf)
        for added, (first, second) in zip(of_choice, spent, strict=True):
            if first <= caps[0] and second <= caps[1]:
                before = best[: caps[0] + 1 - first, : caps[1] + 1 - second]
                np.minimum(after[first:, second:], before + added, out=after[first:, second:])
        best = after
    return best[-1, -1]


def _price(objective: np.ndarray, weight: np.ndarray, cap: int) -> tuple[float, np.ndarray]:
    """Return the least price per weight, nearly, at which the cheapest plan keeps the cap, and that plan."""

    def cheapest(price: float) -> np.ndarray:
        return np.lexsort((weight, objective + price * weight))[:, 0]

    def keeps(chosen: np.ndarray) -> bool:
        return np.take_along_axis(weight, chosen[:, None], 1).sum() <= cap

    if keeps(cheapest(0.0)):
        return 0.0, cheapest(0.0)
    low, high = 0.0, 1e-12
    while not keeps(cheapest(high)):
        low, high = high, high * 4
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if keeps(cheapest(middle)) else (middle, high)
    return high, cheapest(high)


def _filled(objective: np.ndarray, weight: np.ndarray, cap: int, chosen: np.ndarray) -> float:
    """Spend what the plan leaves on the best single changes in turn; return the objective reached."""
    rows = np.arange(len(weight))
    while True:
        gain = objective[rows, chosen][:, None] - objective
        room = cap - weight[rows, chosen].sum()
        gain[weight - weight[rows, chosen][:, None] > room] = 0.0
        site, choice = np.unravel_index(gain.argmax(), gain.shape)
        if gain[site, choice] <= 0.0:
            return objective[rows, chosen].sum()
        chosen[site] = choice


def least_under_caps(
    objective: np.ndarray, weights: np.ndarray, caps: Sequence[int], known: float, most: int = 2_000_000
) -> float:
    """Return the least objective of one choice a site under several caps, or ``known`` if none is lower.

    As :func:`least_objective`, with a price for each cap. Of the pairs (spent amounts, objective) those go that cannot become
    better than ``known``, the objective of some plan within the caps, and those that another one is no worse than in all.

    Args:
        objective: ``[sites, choices]`` float64, 0 or more.
        weights: ``[sites, choices, caps]`` int64, 0 or more.
        caps: the largest summed weights; exact below 2^63.
        known: where to stop looking.
        most: the most pairs to keep; more raise OverflowError.
    """
    cap = np.array(caps, np.int64)
    prices = _prices(objective, weights, cap, known)
    priced = objective + weights @ prices
    order = np.argsort(np.partition(priced, 1, axis=1)[:, 1] - priced.min(1))
    lowest_after = np.cumsum(np.vstack([weights.min(1)[order], np.zeros((1, len(cap)), np.int64)])[::-1], 0)
    priced_after = np.append(np.cumsum(priced.min(1)[order][::-1])[::-1], 0.0)
    used, lost = np.zeros((1, len(cap)), np.int64), np.zeros(1)
    for step, site in enumerate(order, start=1):
        used = (used[:, None] + weights[site]).reshape(-1, len(cap))
        lost = (lost[:, None] + objective[site]).ravel()
        bound = lost + priced_after[step] - (cap - used) @ prices
        # The slack of 1e-9 covers the rounding of the bound, never of a weight.
        keep = (used + lowest_after[len(order) - step] <= cap).all(1) & (bound <= known * (1 + 1e-9))
        used, lost = _undominated(used[keep], lost[keep])
        if len(lost) > most:
            raise OverflowError(f"{len(lost)} pairs after {step} of {len(order)} sites")
    return min(known, lost.min(initial=np.inf))


def _prices(objective: np.ndarray, weights: np.ndarray, cap: np.ndarray, known: float) -> np.ndarray:
    """Return prices whose bound is high: steps along the subgradient, as long as the distance to ``known`` allows."""
    unit = np.maximum(1, cap).astype(np.float64)
    rows, prices = np.arange(len(objective)), np.zeros(len(cap))
    best, best_prices = -np.inf, prices
    scaled = weights / unit
    for turn in range(3000):
        chosen = (objective + scaled @ prices).argmin(1)
        over = scaled[rows, chosen].sum(0) - 1
        bound = objective[rows, chosen].sum() + prices @ over
        if bound > best:
            best, best_prices = bound, prices
        norm = over @ over
        if norm == 0.0:
            break
        prices = np.maximum(0.0, prices + (known - bound) / norm * over * 0.998**turn)
    return best_prices / unit


def _undominated(used: np.ndarray, lost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drop pairs that another one is no worse than in any amount; some that are stay, where amounts are close."""
    order = np.lexsort((lost, *used.T[1:], used[:, 0]))
    used, lost = used[order], lost[order]
    if used.shape[1] == 1 or len(lost) < 2:
        before = np.append(np.inf, np.minimum.accumulate(lost)[:-1])
        return (used[lost < before], lost[lost < before]) if used.shape[1] == 1 else (used, lost)
    if used.shape[1] > 2:
        return used, lost
    buckets = 48
    edges = np.quantile(used[:, 1], np.linspace(0, 1, buckets + 1)[1:-1])
    # A pair in a lower bucket has spent less of the second amount, and one before it in the order no more of the first.
    bucket = np.searchsorted(edges, used[:, 1], side="right")
    table = np.full((len(lost), buckets), np.inf)
    table[np.arange(len(lost)), bucket] = lost
    least = np.minimum.accumulate(np.minimum.accumulate(table, 0), 1)
    lower = least[np.arange(len(lost)), np.maximum(bucket - 1, 0)]
    keep = (bucket == 0) | (lost < lower)
    return used[keep], lost[keep]
