from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from sae_lens_gba.runs import models
from sae_lens_gba_command import main
from tests.toolbox import TRAIN_FLAGS, Train


@pytest.fixture
def train(
    tmp_path: Path,
    tiny_hooked_transformer: Any,
    tiny_texts: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> Train:
    """Runs the command into ``tmp_path/run``; its exit code."""
    monkeypatch.setattr(models, "load_model", lambda *_, **__: tiny_hooked_transformer)
    texts = tmp_path / "texts"
    texts.mkdir()
    tiny_texts.to_json(texts / "train.jsonl")
    places = {"dataset_path": str(texts), "output_path": str(tmp_path / "run")}

    def train(*flags: str, **changes: str | None) -> int:
        settings = {**TRAIN_FLAGS, **places, **changes}
        given = [part for name, value in settings.items() if value for part in (f"--{name}", value)]
        return main(["train", *given, *flags])

    return train
