"""The properties of tests/test_properties.py, with many more settings."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree


def rows(scale: float) -> list[dict[str, Any]]:
    """One row a property; see `experiments.torture.run`."""
    examples = max(5, round(150 * scale))
    with tempfile.TemporaryDirectory() as work:
        report = Path(work) / "report.xml"
        subprocess.run(
            [sys.executable, "-m", "pytest", "tests/test_properties.py", f"--junitxml={report}"],
            env={**os.environ, "SAE_LENS_GBA_EXAMPLES": str(examples)},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.DEVNULL,
        )
        cases = list(ElementTree.parse(report).iter("testcase"))
    return [
        {
            "fault": case.attrib["name"].removeprefix("test_").replace("_", " "),
            "tried": examples,
            # hypothesis stops at the first one
            "survived": 0 if len(case) else examples,
            "lost": 1 if len(case) else 0,
        }
        for case in cases
    ]
