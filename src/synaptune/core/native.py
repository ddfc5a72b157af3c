"""C sources compiled once per machine into the cache folder."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from synaptune.core.files import cache_dir

# Vector versions of the mathematical functions, which -ffast-math makes the compiler call.
_LIBRARIES = (
    ("-lmvec", "-lm")
    if platform.machine() == "x86_64" and platform.libc_ver()[0] == "glibc"
    else ("-lm",)
)
_FLAGS = ("-O3", "-march=native", "-ffast-math", "-fopenmp", "-fPIC", "-std=gnu11")


def load_native(source: Path, defines: Sequence[str] = ()) -> ctypes.CDLL:
    """Compile a C source where this machine has not done so before, and load it.

    Several processes may compile it at the same time.

    Args:
        source: the file.
        defines: macros, as NAME=VALUE.

    Raises:
        OSError: there is no C compiler, or the source cannot be compiled or loaded.
    """
    compiler = shutil.which(os.environ.get("CC", "gcc")) or shutil.which("cc")
    if compiler is None:
        raise OSError("no C compiler (gcc, or $CC)")
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    processor = next((line for line in lines if line.startswith("flags")), platform.processor())
    options = [*_FLAGS, *(f"-D{define}" for define in defines)]
    key = "\n".join([source.read_text(), compiler, *options, platform.platform(), processor])
    name = f"{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    target = cache_dir() / "kernels" / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            built, library = Path(folder, "source.o"), Path(folder, "library.so")
            _run([compiler, *options, "-c", str(source), "-o", str(built)])
            # The linker gets neither the OpenMP nor the fast-math option. The first would add a
            # thread pool beside torch's, to which the symbols resolve; the second would change the
            # floating-point mode of the process.
            _run([compiler, "-shared", str(built), "-o", str(library), *_LIBRARIES])
            os.replace(library, target)
    return ctypes.CDLL(str(target))


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise OSError(done.stderr.decode(errors="replace").strip())
