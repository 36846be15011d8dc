"""Where the zoo's files come from: installed Python packages, Debian packages, or a data folder.

Nothing is downloaded here. A missing file is an error whose message is the command that installs it.
"""

from importlib.util import find_spec
from pathlib import Path

from pyquant.errors import DataError, MissingPackageError

DATA_FOLDER = Path(".data")
SYSTEM = Path("/")


def package_folder(module: str, requirement: str) -> Path:
    """Find the folder of an installed Python package without importing it: its files are enough.

    Args:
        module: top-level import name.
        requirement: what pip is asked for, e.g. ``"foolbox==3.3.4"``.

    Raises:
        MissingPackageError: not installed; the message is the pip command.
    """
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(f"{requirement} is not installed; run: pip install --no-deps {requirement}")
    return Path(spec.submodule_search_locations[0])


def debian_path(package: str, path: str, data: str | Path | None = None) -> Path:
    """Find a file or folder of a Debian package: in ``data``, then in ``.data`` here, then in the system.

    Args:
        package: Debian package name, for the message.
        path: where the package puts it, relative to the root: ``"usr/share/datasets/fashion-mnist"``.
        data: folder into which packages were unpacked; None searches the other two only.

    Raises:
        DataError: ``data`` is given and is not a folder.
        MissingPackageError: not found; the message names `make data` and the apt command.
    """
    roots = [DATA_FOLDER, SYSTEM]
    if data is not None:
        if not Path(data).is_dir():
            raise DataError(
                f"data folder '{data}' is not a folder; give the one that `make data` filled, or None."
            )
        roots.insert(0, Path(data))
    for root in roots:
        if (root / path).exists():
            return root / path
    raise MissingPackageError(
        f"Debian package {package} is not installed ('{path}' was searched for in "
        f"{', '.join(str(root) for root in roots)}); run: make data, or: apt-get install {package}"
    )
