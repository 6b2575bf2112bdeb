"""What a decoder row promotes is what the model itself does with that direction."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from sae_lens_gba.report.logit_lens import logit_lens
from tests.toolbox import (
    D_MODEL,
    VOCABULARY,
    boot,
    hooked_transformer,
    save_tiny_llama,
    save_tokenizer,
)

ROWS = torch.randn(3, D_MODEL, generator=torch.Generator().manual_seed(0))


def lens(model: Any, rows: torch.Tensor, hook: str = "blocks.1.hook_resid_post") -> Any:
    saved: Any = SimpleNamespace(decoder_rows=rows, hook_name_out=hook)
    return logit_lens(saved, range(len(rows)), model, VOCABULARY.__getitem__)


@pytest.fixture(params=["llama", "gemma", "layer norm"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    save_tokenizer(tmp_path, VOCABULARY)
    if request.param == "llama":
        save_tiny_llama(tmp_path, VOCABULARY)
        found = boot(tmp_path)
    elif request.param == "gemma":  # keeps its norms' weights as an offset from 1
        config = Gemma2Config(
            vocab_size=len(VOCABULARY), hidden_size=D_MODEL, intermediate_size=32,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, head_dim=4,
            bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )  # fmt: skip
        torch.manual_seed(0)
        Gemma2ForCausalLM(config).save_pretrained(tmp_path)
        found = boot(tmp_path)
    else:
        found = hooked_transformer(tmp_path)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "ln_final" in name:
                parameter.add_(torch.randn_like(parameter) / 2)
    return found


@torch.no_grad()
def test_the_model_promotes_what_the_lens_says(model: Any) -> None:
    promoted, demoted, notes = lens(model, ROWS)
    assert notes == []
    x = 1e3 * ROWS[None]  # so large that nothing else in the residual stream counts
    logits = (model.unembed(model.ln_final(x)) - model.unembed(model.ln_final(-x)))[0]
    for row, up, down in zip(logits, promoted, demoted, strict=True):
        assert [w.token for w in up] == [VOCABULARY[i] for i in row.topk(10).indices]
        assert [w.token for w in down] == [
            VOCABULARY[i] for i in row.topk(10, largest=False).indices
        ]


def test_a_model_in_half_precision_is_read(model: Any) -> None:
    expected = lens(model, ROWS)[0]
    found = lens(model.to(torch.bfloat16), ROWS)[0]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours[0].weight == pytest.approx(theirs[0].weight, rel=0.05)


@pytest.mark.parametrize("model", ["layer norm"], indirect=True)
def test_what_a_layer_norm_takes_away_promotes_nothing(model: Any) -> None:
    promoted, _, _ = lens(model, torch.ones(1, D_MODEL))
    assert max(abs(w.weight) for w in promoted[0]) < 1e-3


@pytest.mark.parametrize("model", ["gemma"], indirect=True)
@pytest.mark.parametrize(
    ("hook", "is_residual"),
    [("mlp.hook_out", False), ("attn.hook_out", False), ("ln2_post.hook_out", True)],
)
def test_what_another_norm_follows_is_not_added_as_it_is(
    hook: str, is_residual: bool, model: Any
) -> None:
    _, _, notes = lens(model, ROWS, f"blocks.1.{hook}")
    assert (notes == []) == is_residual


@pytest.mark.parametrize("hook", ["blocks.1.attn.hook_z", "blocks.1.ln1.hook_normalized"])
def test_a_hook_beside_the_residual_stream_has_no_lens(hook: str, model: Any) -> None:
    promoted, _, (note,) = lens(model, ROWS, hook)
    assert promoted == [[], [], []]
    assert note == f"No logit lens: {hook} does not write to the residual stream."


def test_a_model_without_an_unembedding_says_so() -> None:
    _, _, (note,) = lens(SimpleNamespace(), ROWS, "model.layers.8")
    assert "the model has no W_U" in note
