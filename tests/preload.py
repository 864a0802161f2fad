"""Libraries for LD_PRELOAD, compiled when a test asks for them."""

import shutil
import subprocess
from pathlib import Path

import pytest


def preload_library(source: Path, directory: Path) -> Path:
    """Compile `source` into `directory`; fails the test where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.fail("no C compiler: apt-get install gcc libc6-dev (.ci/run does it)")
    library = directory / f"{source.stem}.so"
    subprocess.run([compiler, "-O2", "-fPIC", "-shared", "-o", library, source, "-ldl"], check=True)
    return library
