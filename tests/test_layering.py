"""The house rules that a machine can check: imports point down, files are short and well named, errors are typed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pyquant"
# From the top of the house down; a module imports its own floor or a lower one. Longest prefix wins.
FLOORS = [
    ("pyquant.__main__",),
    ("pyquant.cli", "pyquant.tables", "pyquant.entries"),
    ("pyquant",),
    ("pyquant.pipeline",),
    ("pyquant.diagnosis",),
    ("pyquant.allocation",),
    ("pyquant.steps", "pyquant.runtime"),
    ("pyquant.moments", "pyquant.fidelity", "pyquant.costs"),
    ("pyquant.model",),
    ("pyquant.capture",),
    (
        "pyquant.fold",
        "pyquant.translate",
        "pyquant.exported",
        "pyquant.data",
        "pyquant.regions",
        "pyquant.files",
    ),
    ("pyquant.graph",),
    ("pyquant.layers", "pyquant.quantizer"),
    ("pyquant.ops",),
    ("pyquant.reference", "pyquant.grid", "pyquant.selection", "pyquant.journal"),
    ("pyquant.zoo",),
    ("pyquant.errors", "pyquant.kernels", "pyquant._C"),
]
FLOOR = {name: depth for depth, names in enumerate(FLOORS) for name in names}
VAGUE = {
    "utils",
    "util",
    "helpers",
    "helper",
    "common",
    "misc",
    "base",
    "core",
    "manager",
    "legacy",
    "v2",
    "tools",
}
MAY_PRINT = {"pyquant.cli", "pyquant.zoo.train_fashion_mnist"}
SOURCES = sorted(PACKAGE.rglob("*.py"))
KERNELS = sorted((ROOT / "kernels").rglob("*.py"))
NATIVE = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".h", ".cuh", ".cpp", ".cu", ".c"})
ALL_PYTHON = [
    *SOURCES,
    *KERNELS,
    *sorted((ROOT / "tests").rglob("*.py")),
    *sorted((ROOT / "bench").rglob("*.py")),
]


def label(path):
    return str(path.relative_to(ROOT))


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree, module, is_package=False):
    """Modules of the package that a syntax tree imports, wherever in it, type checking included."""
    known = {module_name(path) for path in SOURCES} | {"pyquant._C", "pyquant.kernels"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (
                alias.name for alias in node.names if alias.name.split(".")[0] in ("pyquant", "kernels")
            )
        elif isinstance(node, ast.ImportFrom):
            parent = ""
            if node.level:
                parts = module.split(".")
                parent = ".".join(parts[: len(parts) - node.level + is_package])
            source = ".".join(part for part in (parent, node.module) if part)
            if source.split(".")[0] not in ("pyquant", "kernels"):
                continue
            for alias in node.names:
                full = f"{source}.{alias.name}"
                yield full if full in known else source


def floor(module):
    """Depth of a module: that of the longest known prefix; the package itself stands for its ``__init__`` only."""
    parts = module.split(".")
    for length in range(len(parts), 1, -1):
        name = ".".join(parts[:length])
        if name in FLOOR:
            return FLOOR[name]
    return FLOOR["pyquant"] if module == "pyquant" else None


def fault(importer, imported):
    """Why an import is not allowed; None if it is."""
    if imported.split(".")[0] == "kernels":
        return "import ours as pyquant.kernels: 'kernels' is somebody else's package"
    above, below = floor(importer), floor(imported)
    if above is None or below is None:
        return f"{importer if above is None else imported} has no floor; add it to FLOORS"
    if below < above:
        return "it points up"
    if importer.startswith("pyquant.zoo") and not imported.startswith(("pyquant.zoo", "pyquant.errors")):
        return "the zoo imports only errors and itself"
    first, second = importer.split("."), imported.split(".")
    if above == below and first[1] != second[1] and {first[1], second[1]} == {"steps", "runtime"}:
        return "steps and runtime know nothing of each other"
    if first[:2] == second[:2] == ["pyquant", "steps"]:
        inside = second[2:3] == ["rounding"]
        if importer != imported and not inside:
            return "a step imports another step"
    return None


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_imports_point_down(path):
    name = module_name(path)
    found = [(i, fault(name, i)) for i in imports(parse(path), name, path.stem == "__init__")]
    assert [(i, why) for i, why in found if why] == []


@pytest.mark.parametrize(
    ("importer", "line"),
    [
        ("pyquant.graph", "from pyquant.model import QModel"),
        ("pyquant.ops.pack", "import pyquant.layers"),
        ("pyquant.quantizer", "def f():\n    from pyquant import graph"),
        ("pyquant.steps.bn_tune", "from pyquant.steps.adaquant import adaquant"),
        ("pyquant.steps.bn_tune", "from pyquant.steps import adaquant"),
        ("pyquant.steps.calibrate", "from pyquant.runtime import lower"),
        ("pyquant.runtime.lower", "from pyquant.steps.calibrate import calibrate"),
        ("pyquant.steps.rounding.gptq", "from ..adaquant import adaquant"),
        ("pyquant.zoo.images", "from pyquant.grid import Grid"),
        ("pyquant.ops.backend", "import kernels.grid"),
        ("pyquant.brand_new", "from pyquant.errors import GridError"),
    ],
)
def test_a_forbidden_import_is_found(importer, line):
    assert any(fault(importer, i) for i in imports(ast.parse(line), importer))


@pytest.mark.parametrize("path", KERNELS, ids=label)
def test_kernels_know_nothing_of_the_package(path):
    """They import each other, by relative names only."""
    tree = parse(path)
    relative = {id(node) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1}
    tree.body = [node for node in tree.body if id(node) not in relative]
    assert list(imports(tree, module_name(path))) == []


@pytest.mark.parametrize("path", NATIVE, ids=label)
def test_native_code_knows_nothing_of_python_or_torch(path):
    text = path.read_text(encoding="utf-8")
    assert "torch/" not in text and "ATen" not in text and 'import("pyquant' not in text
    if not path.name.startswith("bindings"):
        assert "pybind11" not in text and "Python.h" not in text


@pytest.mark.parametrize("path", [*SOURCES, *KERNELS, *NATIVE], ids=label)
def test_files_are_short(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{lines} lines hold two ideas: split it"


@pytest.mark.parametrize("path", [*ALL_PYTHON, *NATIVE], ids=label)
def test_names_say_what_is_inside(path):
    words = {part.lower() for part in path.relative_to(ROOT).with_suffix("").parts}
    assert not words & VAGUE


@pytest.mark.parametrize("path", [*SOURCES, *KERNELS], ids=label)
def test_errors_are_typed_and_nothing_prints(path):
    name = module_name(path)
    for node in ast.walk(parse(path)):
        where = f"line {getattr(node, 'lineno', '?')}"
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = {c.id for c in caught if isinstance(c, ast.Name)}
            assert node.type is not None and not names & {"Exception", "BaseException"}, where
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), where
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and name not in MAY_PRINT:
            assert node.func.id != "print", where


WITHOUT = """
import sys
for name in ("pyquant._C", "triton", "triton.language", "onnx", "onnxruntime", "PIL"):
    sys.modules[name] = None
import torch, pyquant
from pyquant.grid import Grid
from pyquant.ops.fake_quantize import fake_quantize
x = torch.tensor([0.24, -9.0, 9.0])
y = fake_quantize(x, torch.tensor(0.5), torch.tensor(2.0), Grid(3, signed=False))
assert y.tolist() == [0.0, -1.0, 2.5], y
print("fine")
"""


def test_the_package_imports_and_works_without_extension_and_triton(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "fine"
