"""For programs without Python: where the C header and the library of the engine are."""

from __future__ import annotations

from pathlib import Path

from pyquant.errors import BackendError

_PACKAGE = Path(__file__).resolve().parents[1]


def include() -> str:
    """The folder of ``pyquant.h``, for ``cc -I``."""
    # Installed with the package; in a checkout it is among the sources.
    installed = _PACKAGE / "include"
    return str(installed if installed.is_dir() else _PACKAGE.parent / "csrc" / "include")


def library() -> str:
    """The path of ``libpyquant.so``: link with it, or copy it with :func:`include`'s header to where they are needed.

    Raises:
        BackendError: it was not built.
    """
    path = _PACKAGE / "libpyquant.so"
    if not path.exists():
        raise BackendError(
            f"{path} is not there: it is built on Linux, where a C++ compiler is; install g++ and reinstall pyquant-engine."
        )
    return str(path)
