"""What a site costs at a choice of bits: whole numbers, exact, known from shapes alone.

``weight_bytes``      bytes of the packed weight codes, as the file has them.
``bops``              bit operations of one sample: multiply-adds x weight bits x input bits.
``activation_bytes``  bytes of the codes that sites read of one sample, packed at their width, each value counted once: what
                      a device has to move that packs them. (Our CPU engine keeps every code in a byte of its own.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from pyquant.model import QModel

FLOAT_BITS = 32


def weight_bytes(q: QModel, site: str, bits: int) -> int:
    """Bytes of a site's packed codes in the file."""
    weight = q.state[f"{site}.weight"]
    return weight.shape[0] * 4 * -(-weight[0].numel() * bits // 32)


def float_bytes(q: QModel) -> int:
    """Bytes of all sites' weights in float32."""
    return sum(4 * q.state[f"{site}.weight"].numel() for site in q.graph.sites)


def multiply_adds(q: QModel, site: str) -> int:
    """Multiply-adds of a site on one sample."""
    node, weight = q.graph.by_name[site], q.state[f"{site}.weight"]
    shape = node.shape or ()
    positions = math.prod(shape[1:] if node.op == "conv2d" else shape[:-1])
    return positions * weight.numel()


def activation_bytes(q: QModel, site: str, bits: int) -> int:
    """Bytes of the packed codes that a site reads; 0 if an earlier site reads the same value."""
    value = q.graph.by_name[site].inputs[0]
    first = next(other for other in q.graph.sites if q.graph.by_name[other].inputs[0] == value)
    return -(-math.prod(q.graph.by_name[value].shape or ()) * bits // 8) if site == first else 0


COSTS: Mapping[str, Callable[[QModel, str, int, int], int]] = {
    "weight_bytes": lambda q, site, w, a: weight_bytes(q, site, w),
    "bops": lambda q, site, w, a: multiply_adds(q, site) * w * a,
    "activation_bytes": lambda q, site, w, a: activation_bytes(q, site, a),
}


def in_float(q: QModel, cost: str) -> int:
    """What a cost of the whole network is in float32, of which a budget at most 1 is a share."""
    return sum(COSTS[cost](q, site, FLOAT_BITS, FLOAT_BITS) for site in q.graph.sites)
