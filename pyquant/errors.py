"""Every error a user of pyquant can meet: one sentence saying what is wrong, what was given, what would be right."""


class PyquantError(Exception):
    """Root of all pyquant errors; catch it to catch them all."""


class GridError(PyquantError, ValueError):
    """A grid or its parameters make no sense: bits outside 2..8, a scale that is not a positive normal number."""


class ShapeError(PyquantError, ValueError):
    """A tensor's shape does not fit the operation."""


class DTypeError(PyquantError, TypeError):
    """A tensor's dtype, device or memory layout is not one the operation takes."""


class DataError(PyquantError, ValueError):
    """Calibration or evaluation data is empty, not finite, or of a kind the model does not take."""


class CaptureError(PyquantError, ValueError):
    """A model could not be captured as a graph."""


class SiteError(PyquantError, KeyError):
    """A site was named that the model does not have, or a site cannot take what was asked of it."""

    def __str__(self) -> str:
        """Show the sentence itself; KeyError would show its repr."""
        return str(self.args[0]) if self.args else ""


class BudgetError(PyquantError, ValueError):
    """A budget is nonsensical or cannot be met by any choice of bits."""


class CheckpointError(PyquantError, ValueError):
    """A checkpoint file is truncated, altered, of another format, or cannot be written."""


class BackendError(PyquantError, RuntimeError):
    """A pinned backend cannot serve the call, or no backend can."""


class MissingPackageError(PyquantError, ImportError):
    """An optional package or data set is not installed; the message is the command that installs it."""
