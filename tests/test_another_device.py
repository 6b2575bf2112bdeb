"""Every path of an SAE's code runs on another device than the CPU, in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="needs a torch that takes backends written in Python",
)
def test_everything_runs_on_another_device_than_the_cpu() -> None:
    cases = Path(__file__).parent / "another_device" / "cases.py"
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(cases)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout[-6000:]
