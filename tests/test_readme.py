"""The README's code runs as it stands there."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_example_runs_in_the_order_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(PYTHON) >= 2
    monkeypatch.chdir(tmp_path)
    shared: dict[str, object] = {}
    for block in PYTHON:
        if "# not run in tests" not in block:
            exec(compile(block, "README.md", "exec"), shared)
    assert (tmp_path / "my_sae" / "gba_groups.safetensors").is_file()


def test_the_readmes_main_example_has_at_most_ten_lines() -> None:
    code = [line for line in PYTHON[0].splitlines() if line.strip() and line.strip()[0] != "#"]
    assert len(code) <= 10


def test_every_target_that_the_readme_names_exists() -> None:
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)`", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
