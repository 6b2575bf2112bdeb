"""Every example runs, quickly, and says something."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize(
    ("script", "arguments", "says"),
    [
        ("01_train_on_activations.py", ["--steps", "60"], "JumpReLUSAE: L0"),
        ("02_bias_adaptation_hook.py", ["--steps", "60"], "group 9:"),
        ("05_publish_and_load.py", [], "dry run"),
    ],
)
def test_example_runs(script: str, arguments: list[str], says: str, tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert says in process.stdout
