"""The portable kernels as aarch64 runs them, under an emulator: the reference's bytes, from networks and from every kernel.

Slow, and skipped where neither a cross compiler and an emulator are installed nor Debian's packages of them can be fetched.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import pyquant as pq
from pyquant import zoo
from pyquant.ops.backend import missing
from pyquant.runtime.checkpoint import save
from pyquant.runtime.compare import same_bytes
from pyquant.runtime.execute_reference import ReferenceExecutor
from pyquant.runtime.program import Program
from tests.native.kernel_calls import bytes_of, calls
from tests.native.samples import write_samples
from tests.ops.w4_cases import same_bytes as same_but_for_nan
from tests.runtime.random_program import Writer, random_conv, random_network
from tools import aarch64

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing("cpu") is not None, reason=str(missing("cpu"))),
    pytest.mark.skipif(
        platform.machine() != "x86_64",
        reason="only x86-64 needs an emulator to be aarch64; the other tests serve here",
    ),
]


@pytest.fixture(scope="module")
def chain() -> aarch64.Toolchain:
    try:
        return aarch64.toolchain()
    except aarch64.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def run(chain: aarch64.Toolchain, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Builds a native test for aarch64 and runs it; returns what it prints."""
    folder = tmp_path_factory.mktemp("aarch64")
    library = aarch64.build(chain)

    def build_and_run(name: str, *arguments: object, inside: bool = False) -> str:
        """``inside``: with all of csrc in the program, instead of the library and the thread pool beside it."""
        if name.endswith(".c"):
            language, sources = "gcc", [ROOT / "csrc" / "examples" / name]
            options = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
        else:
            language, sources = "g++", [HERE / f"{name}.cpp"]
            options = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{ROOT / 'csrc'}"]
            if inside:
                objects = (aarch64.FOLDER / "objects" / "csrc").rglob("*.o")
                sources += [path for path in objects if not path.stem.startswith("bindings")]
            elif name == "thread_pool":
                sources.append(ROOT / "csrc" / "cpu" / "threads.cpp")
        linked = [] if inside else [library, f"-Wl,-rpath,{library.parent}"]
        words = [
            *chain.compiler(language),
            *options,
            *sources,
            f"-I{pq.include()}",
            *linked,
            "-o",
            folder / name,
        ]
        built = subprocess.run(
            list(map(str, words)), capture_output=True, text=True, env=chain.environment(), check=False
        )
        assert built.returncode == 0, built.stderr
        words = [*chain.emulator(), str(folder / name), *map(str, arguments)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=1800, check=False)
        assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    return build_and_run


def test_the_library_is_for_aarch64(chain: aarch64.Toolchain) -> None:
    """The head of the ELF file says 64 bits, the low byte first, and machine 183."""
    head = aarch64.build(chain).read_bytes()[:20]
    assert head[:6] == b"\x7fELF\x02\x01" and int.from_bytes(head[18:20], "little") == 183


def products(seed: int) -> tuple[Program, list[Tensor]]:
    """A matrix product, and a depthwise convolution of odd size: to codes and to floats, with a residual."""
    writer = Writer(seed)
    x = writer.codes_input(1, writer.pick(1, 40), writer.pick(1, 300))
    n = writer.pick(1, 70)
    y = writer.conv(x, n, bits=writer.pick(2, 8))
    z = writer.conv(x, n, residual=y, bits=8)
    image = writer.codes_input(writer.pick(5, 20), writer.pick(9, 40), channels := writer.pick(1, 50))
    size = writer.pick(1, 3)
    deep = writer.conv(image, channels, (3, 5), (size, 1), (1, 2, 1, 2), (1, size), groups=channels, bits=8)
    return writer.program(y, z, deep, writer.conv(x, 3, float_rank=2)), writer.batch(writer.pick(1, 3))


def test_networks_give_the_reference_bytes(run: Callable[..., str], tmp_path: Path) -> None:
    drawn = [random_conv(seed) for seed in range(300)] + [random_network(seed) for seed in range(20)]
    drawn += [products(seed) for seed in range(60)]
    paths = [tmp_path / f"{number}.pq" for number in range(len(drawn))]
    for (program, inputs), path in zip(drawn, paths, strict=True):
        save(program, path, {})
        path.with_suffix(".pq.in").write_bytes(b"".join(map(bytes_of, inputs)))
    assert run("run_files", *paths) == "portable fine\n"
    for (program, inputs), path in zip(drawn, paths, strict=True):
        want = b"".join(map(bytes_of, ReferenceExecutor(program)(*inputs)))
        assert path.with_suffix(".pq.out").read_bytes() == want, path.name


def test_the_other_kernels_give_the_reference_bytes(run: Callable[..., str], tmp_path: Path) -> None:
    made = list(calls())
    (tmp_path / "calls").write_bytes(b"".join(call.packed() for call in made))
    said = run("replay_calls", tmp_path / "calls", tmp_path / "results", inside=True)
    assert said == f"{len(made)} calls\n"
    data, at = (tmp_path / "results").read_bytes(), 0
    for call in made:
        got, at = call.read(data, at)
        for index, (a, b) in enumerate(zip(got, call.results, strict=True)):
            same = same_but_for_nan(a, b) if b.is_floating_point() else torch.equal(a, b)
            assert same, (call.name, call.numbers, index)
    assert at == len(data)


def test_a_c_program_gives_resnet20s_scores(run: Callable[..., str], tmp_path: Path) -> None:
    images = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(4))
    net = pq.deploy(pq.calibrate(pq.prepare(zoo.load("resnet20"), images[:1]), [images]), backend="cpu")
    net.save(tmp_path / "net.pq")
    for image in images:
        (tmp_path / "image.f32").write_bytes(bytes_of(image))
        rows = [
            line.split()
            for line in run("classify.c", tmp_path / "net.pq", tmp_path / "image.f32", 10).splitlines()
        ]
        scores = torch.empty(10)
        for index, score in rows:
            scores[int(index)] = float(score)
        assert len(rows) == 10 and same_bytes(scores, net(image[None])[0])


@pytest.mark.parametrize("name", ["thread_pool", "concurrent_runs", "no_allocation", "fuzz_section"])
def test_native_tests(run: Callable[..., str], tmp_path: Path, name: str) -> None:
    """An emulator's own locks may be held for ever in a child that is made in the midst of runs, as a sanitizer's."""
    files = write_samples(tmp_path)
    arguments = {
        "thread_pool": ["no-fork"], "concurrent_runs": ["no-fork", *files], "no_allocation": files,
        "fuzz_section": [1500, 300, files[0]],
    }[name]  # fmt: skip
    said = run(name, *arguments)
    assert said.startswith("refused ") if name == "fuzz_section" else said == "fine\n"
