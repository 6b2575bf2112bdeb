from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from experiments.lab import hook_point


@pytest.fixture
def tiny_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bridge: Any, tiny_texts: Dataset
) -> Path:
    """Model and texts of the demo are the tests'; what is cached goes to the folder returned."""
    monkeypatch.setattr(hook_point, "load_demo_model", lambda: tiny_bridge)
    monkeypatch.setattr(hook_point, "demo_texts", lambda **_: tiny_texts)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sae-lens-gba"
