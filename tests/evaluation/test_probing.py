"""Sparse probing by sae-probes, on planted data that one latent solves."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from sae_lens_gba.evaluation.probing import probe
from tests.one_latent_a_word import D_MODEL, save_sae

sae_probes = pytest.importorskip("sae_probes", reason="sae-probes or its needs are not installed")

PLANTED = "999_planted"
# latent i is the i-th word of the vocabulary, and its last word decides the class
POSITIVE, NEGATIVE = 3, 4


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("run_sae_evals", "utils_data"):
        importlib.import_module(f"sae_probes.{part}")
    shuffled = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    is_positive = shuffled < 150  # the benchmark's split wants as many of each
    rows = pd.DataFrame(
        {
            "prompt": [
                f"word{i % 7 + 10} word{POSITIVE - 2 if positive else NEGATIVE - 2}"
                for i, positive in enumerate(is_positive.tolist())
            ],
            "target": is_positive.int().tolist(),
        }
    )
    (tmp_path / "cleaned_data").mkdir()
    rows.to_csv(tmp_path / "cleaned_data" / f"{PLANTED}.csv.zst", index=False)
    monkeypatch.setattr(sae_probes, "DATASETS", [PLANTED])
    monkeypatch.setattr("sae_probes.generate_model_activations.DATA_PATH", tmp_path)
    monkeypatch.setattr("sae_probes.utils_data.read_dataset_df", lambda _: rows)
    sizes = sys.modules["sae_probes.generate_sae_activations"].DATASET_SIZES
    monkeypatch.setitem(sizes, PLANTED, len(rows))


@pytest.mark.usefixtures("planted")
def test_the_latent_that_knows_the_class_is_found_and_solves_it(
    sae_folders: tuple[Path, Path], model: Any, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    scores = probe(
        sae_folders[0], [PLANTED], ks=(1, 2), model=model, max_seq_len=8, activations_cache=cache
    )
    assert [(score.dataset, score.k) for score in scores] == [(PLANTED, 1), (PLANTED, 2)]
    assert scores[0].test_auc == scores[0].test_accuracy == 1
    assert scores[0].latents[0] in (POSITIVE, NEGATIVE)
    assert set(scores[1].latents) == {POSITIVE, NEGATIVE}
    assert list(cache.rglob("*.pt"))


@pytest.mark.usefixtures("planted")
def test_impossible_settings_are_named(sae_folders: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match=r"datasets=\['no_such'\].*sae_probes.DATASETS"):
        probe(sae_folders[0], ["no_such"])
    with pytest.raises(ValueError, match=r"ks=\(0,\)"):
        probe(sae_folders[0], [PLANTED], ks=(0,))


@pytest.mark.usefixtures("planted")
def test_an_sae_of_all_heads_is_probed_and_one_of_a_single_head_refused(
    model: Any, tmp_path: Path
) -> None:
    hook = "blocks.0.attn.hook_z"
    folder = save_sae(tmp_path / "heads", torch.eye(D_MODEL), hook_name=hook)
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**cfg, "reshape_activations": "hook_z"}))
    (score,) = probe(folder, [PLANTED], ks=(1,), model=model, max_seq_len=8)
    assert 0 <= score.test_auc <= 1
    head = save_sae(tmp_path / "head", torch.eye(12), hook_name=hook, hook_head_index=1)
    with pytest.raises(ValueError, match="is of one attention head"):
        probe(head, [PLANTED], ks=(1,), model=model)


def test_without_sae_probes_the_remedy_is_named(
    sae_folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sae_probes", None)
    with pytest.raises(ImportError, match=r"needs sae_probes: .*--no-deps sae-probes"):
        probe(sae_folders[0], [PLANTED])
