"""Builds the C++ extension ``pyquant._C`` and, on Linux, ``libpyquant.so``: the engine for programs without Python.

A source's name says its instruction set: ``*_avx512.cpp`` or ``*_avx_vnni.cpp``, say, gets its own flags and is reached only after a
run-time check, so one binary serves every x86-64, and on other machines those files compile to nothing. Without a working
compiler the build goes on: the package then runs on the reference backend, and ``pyquant backends`` says so.

With ``nvcc`` on PATH the CUDA kernels are built too, beside the C++, into ``pyquant_cuda.fatbin``; no GPU is needed for that.
"""

import glob
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# The contract wants multiply, then add: without -ffp-contract=off even intrinsics are fused.
COMMON = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-pthread",
]
# A file that is not given these has code for a compiler that does not know them.
NEWER_FLAGS = ("-mamx-tile", "-mamx-int8", "-mavxvnni")
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma", "-mf16c"]
X86_FLAGS = {
    "_amx.cpp": [*AVX512, "-mamx-tile", "-mamx-int8"],
    "_avx512.cpp": AVX512,
    "_avx_vnni.cpp": [*AVX2, "-mavxvnni"],
    "_avx2.cpp": AVX2,
}
# Machine code for each of these, and PTX of the oldest, which a driver can compile for whatever comes later. nvcc before 12.8
# knows no Blackwell: an architecture that it refuses is left out. -fmad=false: multiply, then add.
CUDA_ARCHITECTURES = ("80", "86", "89", "90", "100", "120")
CUDA_FLAGS = ["-std=c++17", "-O3", "-fmad=false"]
CUDA_SOURCE = "csrc/cuda/pyquant_cuda.cu"
FATBIN = "pyquant_cuda.fatbin"
LIBRARY = "libpyquant.so"
HEADER = "csrc/include/pyquant.h"
# Its threads outlive every call, so it can never be unloaded.
LIBRARY_LINK = [
    "-pthread",
    "-Wl,-soname," + LIBRARY,
    "-Wl,-z,nodelete",
    "-Wl,--version-script,csrc/include/pyquant.map",
]


class BuildExtension(build_ext):
    """Compiles the sources in parallel, each with the flags its name asks for, and links what both libraries share twice."""

    user_options: ClassVar = [*build_ext.user_options, ("no-cuda", None, "leave the CUDA kernels out")]
    boolean_options: ClassVar = [*build_ext.boolean_options, "no-cuda"]

    def initialize_options(self):
        """All that can be built is built, unless the command line says otherwise."""
        super().initialize_options()
        self.no_cuda = False

    def build_extensions(self):
        """Wrap the compiler's per-file step with per-file flags, then build as usual."""
        # Of the machine that is built for: a cross compiler's is another than this one.
        x86 = self._compiles("#if !defined(__x86_64__)\n#error\n#endif\n")
        unknown = [flag for flag in NEWER_FLAGS if not self._compiles("", flag)]
        compile_one = self.compiler._compile
        jobs = ThreadPoolExecutor(max_workers=os.cpu_count() or 1)
        pending = []

        def submit(obj, src, ext, cc_args, extra, pp_opts):
            flags = list(extra)
            if x86:
                own = next((f for end, f in X86_FLAGS.items() if src.endswith(end)), [])
                flags += [flag for flag in own if flag not in unknown]
            pending.append(jobs.submit(compile_one, obj, src, ext, cc_args, flags, pp_opts))

        link = self.compiler.link_shared_object

        def link_when_compiled(objects, target, *args, **kwargs):
            for job in pending:
                job.result()
            link([o for o in objects if Path(o).stem != "c_abi"], target, *args, **kwargs)
            if sys.platform == "linux":
                engine = [o for o in objects if not Path(o).stem.startswith("bindings")]
                folder = Path(target).parent
                link(engine, str(folder / LIBRARY), extra_postargs=LIBRARY_LINK, target_lang="c++")
                (folder / "include").mkdir(exist_ok=True)
                shutil.copy(HEADER, folder / "include")

        self.compiler._compile = submit
        self.compiler.link_shared_object = link_when_compiled
        cuda = ThreadPoolExecutor(max_workers=1).submit(self._build_cuda)
        super().build_extensions()
        cuda.result()

    def _build_cuda(self):
        """Compile the CUDA kernels; without nvcc there is no fatbin, and with a failure what nvcc said is all that is said."""
        nvcc = shutil.which("nvcc")
        target = Path(self.build_lib, "pyquant", FATBIN)
        sources = [path for end in ("cu", "cuh") for path in glob.glob(f"csrc/cuda/*.{end}")]
        newest = max(os.path.getmtime(path) for path in [*sources, "setup.py"])
        if (
            self.no_cuda
            or nvcc is None
            or (target.exists() and target.stat().st_mtime > newest and not self.force)
        ):
            return
        listed = subprocess.run(
            [nvcc, "--list-gpu-code"], check=False, capture_output=True, text=True
        ).stdout.split()
        known = [number for number in CUDA_ARCHITECTURES if f"sm_{number}" in listed]
        codes = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in known]
        if "80" in known:
            codes.append("-gencode=arch=compute_80,code=compute_80")
        target.parent.mkdir(parents=True, exist_ok=True)
        command = [nvcc, *CUDA_FLAGS, "--threads", "0", "-fatbin", *codes, CUDA_SOURCE, "-o", str(target)]
        if subprocess.run(command, check=False).returncode != 0:
            target.unlink(missing_ok=True)

    def _compiles(self, text, *flags):
        with tempfile.TemporaryDirectory() as folder:
            source = os.path.join(folder, "little.cpp")
            with open(source, "w") as file:
                file.write(text + "int main() { return 0; }\n")
            command = [*self.compiler.compiler_so, *flags, "-c", source, "-o", source + ".o"]
            return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def copy_extensions_to_source(self):
        """For a checkout: the library and the CUDA kernels go where the extension goes."""
        super().copy_extensions_to_source()
        for name in (LIBRARY, FATBIN):
            built = Path(self.build_lib, "pyquant", name)
            if built.exists():
                shutil.copy(built, Path("pyquant", name))


def release() -> str:
    """The version that pyproject.toml gives."""
    return tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def extension() -> Extension:
    """Describe ``pyquant._C``; ``optional`` lets an install without a compiler go on."""
    import pybind11

    return Extension(
        "pyquant._C",
        sources=sorted(glob.glob("csrc/**/*.cpp", recursive=True)),
        depends=sorted(glob.glob("csrc/**/*.h", recursive=True)),
        include_dirs=["csrc", pybind11.get_include()],
        define_macros=[("PQ_RELEASE", f'"{release()}"')],
        extra_compile_args=COMMON,
        extra_link_args=["-pthread"],
        language="c++",
        optional=True,
    )


setup(ext_modules=[extension()], cmdclass={"build_ext": BuildExtension})
