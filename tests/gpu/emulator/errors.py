"""What the emulator says when a program does what no chip promises to bear."""

from __future__ import annotations


class EmulatorError(Exception):
    """A fault of the program (an access out of bounds, a race, a divergent barrier) or a form the emulator does not know.

    Attributes:
        line: of the text, where the program ran into it.
    """

    line: int | None = None
