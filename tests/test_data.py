"""The door for data: every usual kind of batch comes in, everything else is refused in one sentence."""

import numpy as np
import pytest
import torch

from pyquant.data import check_input, held_out, load_batches
from pyquant.errors import DataError, DTypeError, ShapeError
from pyquant.graph import Graph, Node

ONE = Graph((Node("x", "input", attrs={"dtype": "float32"}, shape=(2, 3)),), ("x",), ("x",))
TWO = Graph(
    (
        Node("x", "input", attrs={"dtype": "float32"}, shape=(2, 3)),
        Node("ids", "input", attrs={"dtype": "int64"}, shape=(4,)),
    ),
    ("x", "ids"),
    ("x",),
)


def rows(n, first=0):
    return torch.arange(first * 6, (first + n) * 6, dtype=torch.float32).reshape(n, 2, 3)


def ids(n):
    return torch.arange(n * 4).reshape(n, 4)


def joined(batches, column=0):
    return torch.cat([batch[column] for batch in batches])


KINDS = {
    "tensor": lambda: rows(7),
    "tensors": lambda: [rows(3), rows(4, 3)],
    "pairs": lambda: [(rows(3), torch.zeros(3)), (rows(4, 3), torch.ones(4))],
    "lists": lambda: [[rows(3), "label"], [rows(4, 3), None]],
    "dicts": lambda: [{"x": rows(3), "y": 1}, {"y": 2, "x": rows(4, 3)}],
    "one_shot": lambda: (rows(1, i) for i in range(7)),
    "one_shot_pairs": lambda: iter([(rows(3), 0), (rows(4, 3), 1)]),
    "double": lambda: rows(7).double(),
    "half": lambda: rows(7).half(),
    "not_contiguous": lambda: rows(7).permute(2, 1, 0).contiguous().permute(2, 1, 0),
    "an_empty_batch_between": lambda: [rows(3), rows(0), rows(4, 3)],
    "needs_gradient": lambda: rows(7).requires_grad_(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_gives_the_same_even_batches(kind):
    batches = load_batches(KINDS[kind](), ONE, batch_size=3)
    assert [batch[0].shape[0] for batch in batches] == [3, 3, 1]
    assert all(len(batch) == 1 for batch in batches)
    assert torch.equal(joined(batches), rows(7))
    assert all(not b[0].requires_grad and b[0].dtype == torch.float32 for b in batches)


def test_two_inputs_by_place_and_by_name():
    for data in ([(rows(5), ids(5), "label")], [{"ids": ids(5), "x": rows(5)}]):
        batches = load_batches(data, TWO, batch_size=2)
        assert torch.equal(joined(batches), rows(5)) and torch.equal(joined(batches, 1), ids(5))
        assert joined(batches, 1).dtype == torch.int64


NAN, INF = rows(3), rows(3)
NAN[1, 0, 2], INF[2, 1, 1] = float("nan"), float("-inf")
BAD = {
    "nothing": ([], ONE, DataError, "empty"),
    "empty_generator": (iter(()), ONE, DataError, "empty"),
    "no_rows": (rows(0), ONE, DataError, "empty"),
    "number": (3, ONE, DataError, "int"),
    "none": (None, ONE, DataError, "NoneType"),
    "text": (["abc"], ONE, DataError, "batch 0 is a str"),
    "array": ([np.zeros((1, 2, 3), np.float32)], ONE, DataError, "batch 0 is a ndarray"),
    "array_in_a_pair": ([(np.zeros((1, 2, 3), np.float32), 0)], ONE, DTypeError, "'x' is a ndarray"),
    "wrong_shape": ([rows(3), torch.zeros(2, 3, 2)], ONE, ShapeError, r"batch 1.*\(2, 3, 2\).*\[B, 2, 3\]"),
    "no_batch": (torch.zeros(2, 3), ONE, ShapeError, r"\[B, 2, 3\]"),
    "scalar": ([torch.zeros(())], Graph((Node("s", "input", shape=()),), ("s",), ()), ShapeError, r"\[B\]"),
    "bytes": (rows(3).byte(), ONE, DTypeError, "uint8.*normalised"),
    "integers": (rows(3).long(), ONE, DTypeError, "int64.*torch.float32"),
    "floats_for_ids": (
        [(rows(2), ids(2).float())],
        TWO,
        DTypeError,
        "'ids' is torch.float32; give torch.int64",
    ),
    "complex": (rows(3).to(torch.complex64), ONE, DTypeError, "complex64"),
    "nan": ([rows(3), NAN], ONE, DataError, "batch 1.*'x'.*NaN"),
    "infinite": (INF, ONE, DataError, "batch 0.*infinite"),
    "overflowing": (rows(3).double() * 1e300, ONE, DataError, "infinite"),
    "too_few": ([(rows(3),)], TWO, DataError, "1 tensors and the model takes 2"),
    "one_tensor_for_two": (rows(3), TWO, DataError, "takes 2"),
    "other_key": ([{"image": rows(3), "label": 1}], ONE, DataError, "'x'.*image, label"),
    "uneven_rows": ([(rows(3), ids(2))], TWO, ShapeError, "3, 2 rows"),
    "elsewhere": ([torch.zeros(1, 2, 3, device="meta")], ONE, DTypeError, r"meta.*x\.cpu"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data(name):
    data, graph, error, pattern = BAD[name]
    with pytest.raises(error, match=pattern) as caught:
        load_batches(data, graph)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_data_is_not_written_to():
    data = rows(4).double()
    load_batches([data], ONE)[0][0].zero_()
    assert torch.equal(data, rows(4).double())


def test_where_is_named():
    with pytest.raises(ShapeError, match="the request: input 'x'"):
        check_input(torch.zeros(1, 5), ONE, "x", "the request")


@pytest.mark.parametrize("n", [2, 3, 4, 7, 8, 17, 40])
@pytest.mark.parametrize("size", [1, 3, 16])
def test_held_out_rows_are_disjoint_and_complete(n, size):
    fit, held = held_out(load_batches(rows(n), ONE, size))
    first, second = joined(fit)[:, 0, 0].tolist(), joined(held)[:, 0, 0].tolist()
    assert first and second
    assert not set(first) & set(second)
    assert sorted(first + second) == rows(n)[:, 0, 0].tolist()
    assert len(second) == max(1, n // 8)
    assert max(batch[0].shape[0] for batch in fit + held) <= size


def test_held_out_keeps_inputs_together():
    fit, held = held_out(load_batches([(rows(9), ids(9))], TWO, 4))
    for part in (fit, held):
        assert torch.equal(joined(part)[:, 0, 0] / 6, joined(part, 1)[:, 0] / 4)


def test_one_row_serves_as_both():
    batches = load_batches(rows(1), ONE)
    fit, held = held_out(batches)
    assert torch.equal(joined(fit), rows(1)) and torch.equal(joined(held), rows(1))


def test_the_share_held_out():
    fit, held = held_out(load_batches(rows(12), ONE), share=0.5)
    assert joined(held)[:, 0, 0].tolist() == rows(12)[1::2, 0, 0].tolist()
    assert len(joined(fit)) == 6
