"""Cached activations of a language model, and what an SAE is worth on them."""

from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens import SAE, StandardSAE, StandardSAEConfig

from experiments.lab.activations import cached_activations, tokenise
from experiments.lab.hook_point import HookPoint, hook_points
from experiments.lab.training import TrainingSettings, train_together
from sae_lens_gba import GBATrainingSAE
from sae_lens_gba.saved.stock_form import stock_form
from tests.toolbox import D_MODEL, tiny_config

HOOKS = ("blocks.0.hook_resid_post", "blocks.1.hook_mlp_out")


@pytest.fixture
def here(tiny_bridge: Any, tiny_texts: Any, tmp_path: Path) -> HookPoint:
    first, _ = hook_points(
        tiny_bridge, (tiny_texts, tiny_texts), HOOKS, (400, 100), 12, 3, tmp_path
    )
    return first


def identity() -> StandardSAE:
    """Two latents a dimension, one for each sign."""
    sae = StandardSAE(StandardSAEConfig(d_in=D_MODEL, d_sae=2 * D_MODEL))
    both_signs = torch.cat([torch.eye(D_MODEL), -torch.eye(D_MODEL)])
    sae.W_enc.data, sae.W_dec.data = both_signs.T, both_signs
    return sae


def test_an_sae_that_changes_nothing_loses_nothing(here: HookPoint) -> None:
    measured, latents = here.measure(identity())
    assert measured["explained_variance"] == pytest.approx(1.0)
    assert measured["loss"] == pytest.approx(0.0, abs=1e-8)
    assert measured["l0"] == D_MODEL
    assert measured["dead"] == float((latents.frequency == 0).sum())
    assert here.ce_loss_recovered(identity()) == pytest.approx(1.0, abs=1e-4)


def test_an_sae_that_gives_nothing_recovers_nothing(here: HookPoint) -> None:
    silent = identity()
    silent.b_enc.data -= 1e6
    measured, _ = here.measure(silent)
    assert (measured["l0"], measured["dead"]) == (0.0, 2 * D_MODEL)
    mean_square = (here.held_out.float() * here.scale).square().sum(dim=1).mean()
    assert measured["loss"] == pytest.approx(float(mean_square), rel=1e-4)
    # 0 would be with BOS's activation gone as well, which the SAE leaves as it is
    assert here.ce_loss_recovered(silent) < 0.5


def test_a_saved_sae_is_one_of_the_raw_activations(here: HookPoint, tmp_path: Path) -> None:
    scaled = replace(here, scale=3.0)
    sae = GBATrainingSAE(tiny_config())
    x = here.train.float()
    train_together([sae], repeat(x[:256] * 3.0), TrainingSettings(steps=20))
    scaled.save(stock_form(sae), tmp_path / "sae")
    loaded = SAE.load_from_disk(tmp_path / "sae" / here.name)
    assert loaded.cfg.metadata.hook_name == here.name
    sae.eval()
    torch.testing.assert_close(loaded(x), sae(x * 3.0) / 3.0, rtol=1e-4, atol=1e-4)


def test_activations_of_another_hook_point_are_added_to_those_that_are_there(
    tiny_bridge: Any, tiny_texts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, path = tokenise(tiny_bridge, tiny_texts, 100, 12), tmp_path / "cache.safetensors"
    first = cached_activations(tiny_bridge, tokens, HOOKS[:1], path)
    both = cached_activations(tiny_bridge, tokens, HOOKS, path)
    assert torch.equal(both[HOOKS[0]], first[HOOKS[0]])
    assert both[HOOKS[1]].shape == (tokens.shape[0] * 11, D_MODEL)
    other = cached_activations(tiny_bridge, tokens.flip(0), HOOKS[:1], path)  # as many tokens
    assert not torch.equal(other[HOOKS[0]], first[HOOKS[0]])
    monkeypatch.setattr(tiny_bridge, "run_with_cache", None)
    again = cached_activations(tiny_bridge, tokens, HOOKS[1:], path)
    assert torch.equal(again[HOOKS[1]], both[HOOKS[1]])


def test_contexts_for_the_models_loss_come_from_all_over_the_held_out_text(
    here: HookPoint, tiny_bridge: Any, tiny_texts: Any
) -> None:
    tokens = tokenise(tiny_bridge, tiny_texts, 100, 12)
    assert torch.equal(here.ce_tokens, tokens[:: len(tokens) // 3][:3])
    assert not torch.equal(here.ce_tokens, tokens[:3])


def test_a_few_contexts_of_each_document_are_of_many_documents(tiny_bridge: Any) -> None:
    long, short = " ".join(f"word{i}" for i in range(200)), "a b c d e f g h i j k l m n"
    texts = Dataset.from_dict({"text": [long, short, long[::-1]]})
    every = tokenise(tiny_bridge, texts, 30, 12)
    one = tokenise(tiny_bridge, texts, 30, 12, contexts_per_document=1)
    assert len(every) > len(one) == 3
    assert torch.equal(one[0], every[0])
    with pytest.raises(ValueError, match="hold only 33 of 40 tokens"):
        tokenise(tiny_bridge, texts, 40, 12, contexts_per_document=1)
