"""The fake CUDA driver, compiled: see fakecuda.c."""

import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("fakecuda.c")
LIBRARY_NAME = "libcuda.so.1"
CUDA_RUNNER = Path(__file__).with_name("cuda_runner.py")


def build_fake_cuda(directory: Path) -> Path:
    """Compile the fake into `directory` under the name that programs load; CalledProcessError if cc fails."""
    library = directory / LIBRARY_NAME
    flags = ("-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror")
    subprocess.run(["cc", *flags, "-o", library, SOURCE], check=True)
    return library
