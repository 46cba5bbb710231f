"""The bytes are the same whatever instructions the processor has."""

import os
import pathlib
import platform
import subprocess
import sys

import pytest

X86 = platform.machine().lower() in ("x86_64", "amd64")
# numba's names of processors, and the features that ggufmerge and LLVM may use
PROCESSORS = {"generic": ""} | ({"haswell": "+avx2,+bmi2,+f16c,+fma"} if X86 else {})


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSORS)
def test_older_processors_give_the_golden_bytes(name, tmp_path):
    """Short vectors, no conversion of halves, fused multiplication: compiled for that, each codec keeps its goldens."""
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": name,
        "NUMBA_CPU_FEATURES": PROCESSORS[name],
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    here = pathlib.Path(__file__).resolve().parent
    command = [sys.executable, "-m", "pytest", str(here), "-k", "golden_bytes_of_ggml", "-m", "not slow"]
    run = subprocess.run(command, env=environment, cwd=here.parents[1], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]
