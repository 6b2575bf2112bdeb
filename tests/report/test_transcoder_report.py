"""The report of a transcoder that is exact: from each word's embedding to its normalised one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import JumpReLUSkipTranscoder, JumpReLUSkipTranscoderConfig
from sae_lens.saes.sae import SAEMetadata

from sae_lens_gba.sources import load_saes
from tests.one_latent_a_word import CONTEXT_SIZE, D_MODEL, HOOK, N_LATENTS, VOCABULARY, Collect

TARGET = "blocks.0.ln1.hook_normalized"


@pytest.fixture
def folder(model: Any, tmp_path: Path) -> Path:
    """Half of its output comes by the skip connection."""
    metadata = SAEMetadata(
        model_name="tiny", hook_name=HOOK, hook_name_out=TARGET, context_size=CONTEXT_SIZE,
        prepend_bos=True,
    )  # fmt: skip
    settings: dict[str, Any] = {"d_in": D_MODEL, "d_out": D_MODEL, "d_sae": N_LATENTS}
    sae = JumpReLUSkipTranscoder(
        JumpReLUSkipTranscoderConfig(**settings, apply_b_dec_to_input=False, metadata=metadata)
    )
    # embeddings have norm 1, normalised ones sqrt(d_model)
    directions = model.W_E.detach().float()
    with torch.no_grad():
        sae.W_enc.copy_(directions.T)
        sae.W_dec.copy_(directions * D_MODEL**0.5 / 2)
        sae.W_skip.copy_(torch.eye(D_MODEL) * D_MODEL**0.5 / 2)
        sae.threshold.fill_(0.99)
    sae.save_model(tmp_path / "transcoder")
    return tmp_path / "transcoder"


def test_it_is_measured_at_its_target(folder: Path, collect: Collect) -> None:
    (sae,) = collect(folder, n_tokens=640, n_latents=10, ce_tokens=320).saes
    assert sae.hook_name == f"{HOOK} to {TARGET}"
    assert sae.metrics.explained_variance == pytest.approx(1, abs=1e-3)
    assert sae.metrics.l0 == 1
    assert sae.metrics.ce_loss_recovered == pytest.approx(1, abs=1e-3)
    ablated, replaced = sae.metrics.ce_loss_with_ablation, sae.metrics.ce_loss_with_sae
    assert ablated is not None and replaced is not None and abs(ablated - replaced) > 0.01
    for detail in sae.details:
        for context in detail.top:
            assert context.tokens[context.focus] == VOCABULARY[detail.latent]
        assert detail.promoted == []
    assert f"No logit lens: {TARGET} does not write to the residual stream." in sae.notes


def test_it_stands_beside_an_sae_of_its_input(
    folder: Path, sae_folders: tuple[Path, Path], collect: Collect
) -> None:
    transcoder, sae = collect(folder, sae_folders[0], n_tokens=640).saes
    assert transcoder.metrics.l0 == sae.metrics.l0 == 1
    assert sae.metrics.explained_variance == pytest.approx(1, abs=1e-3)


def test_what_can_not_be_had_is_said(folder: Path, collect: Collect) -> None:
    with pytest.raises(ValueError, match="random_baseline is not possible for a transcoder"):
        collect(folder, random_baseline=True)
    text = (folder / "cfg.json").read_text()
    (folder / "cfg.json").write_text(text.replace(f'"{TARGET}"', "null"))
    with pytest.raises(ValueError, match="a transcoder and does not say what it predicts"):
        load_saes([folder])


def test_what_it_promotes_is_at_its_target(folder: Path, model: Any, collect: Collect) -> None:
    cfg = json.loads((folder / "cfg.json").read_text())
    cfg["metadata"]["hook_name_out"] = "blocks.0.hook_mlp_out"
    (folder / "cfg.json").write_text(json.dumps(cfg))
    (sae,) = collect(folder, n_tokens=640, n_latents=10).saes
    for detail in sae.details:
        assert detail.promoted[0].token == VOCABULARY[detail.latent]
