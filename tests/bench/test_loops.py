"""Loops are found where the code has them, and nowhere else."""

import pytest

from bench.loops import Instruction, main_loop, natural_loops, reachable


def program(*lines):
    """Instructions of lines such as ``add``, ``jump 3``, ``branch 3`` (jump or go on) and ``end``."""
    code = []
    for index, line in enumerate(lines):
        word, _, goal = line.partition(" ")
        follows = [] if word in ("end", "jump") else [index + 1]
        code.append(Instruction(word, (*follows, *((int(goal),) if goal else ()))))
    return code


def test_straight_code_has_no_loop_and_padding_is_not_reached():
    code = program("add", "end", "jump 2", "add", "end")
    assert reachable(code) == [0, 1] and natural_loops(code) == {}


def test_loops_within_loops():
    code = program("load", "add", "mul", "branch 2", "add", "branch 1", "end")
    assert natural_loops(code) == {1: {1, 2, 3, 4, 5}, 2: {2, 3}}
    assert main_loop(code, "mul".__eq__) == {2, 3}
    # Neither the inner loop nor the code before the loops is the main loop of what only the outer one holds.
    assert main_loop(code, "add".__eq__) == {1, 2, 3, 4, 5}


def test_the_loop_with_most_of_what_is_wanted_is_the_main_loop():
    code = program("mul", "mul", "branch 0", "mul", "branch 3", "end")
    assert main_loop(code, "mul".__eq__) == {0, 1, 2}
    assert main_loop(code, "div".__eq__, "mul".__eq__) == {0, 1, 2}
    assert main_loop(code, "div".__eq__) == frozenset()


def test_waiting_out_of_line_is_no_loop_around_the_end():
    """The wait at 6 jumps back to 2, but instructions 3 to 5 are not in a loop with it."""
    code = program("load", "branch 6", "mul", "branch 0", "store", "end", "branch 6", "jump 2")
    found = natural_loops(code)
    assert found == {0: {0, 1, 2, 3, 6, 7}, 6: {6}}
    assert (
        main_loop(code, "mul".__eq__) == {0, 1, 2, 3, 6, 7} and main_loop(code, "store".__eq__) == frozenset()
    )


def test_two_jumps_back_to_one_place_are_one_loop():
    assert natural_loops(program("add", "branch 0", "mul", "branch 0", "end")) == {0: {0, 1, 2, 3}}


def test_a_loop_with_two_ways_in_is_refused():
    with pytest.raises(ValueError, match="more than one way in"):
        natural_loops(program("branch 2", "add", "mul", "branch 1", "end"))
