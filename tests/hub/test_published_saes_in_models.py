"""A published SAE in TransformerLens models: read, spliced in, and steered with."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import HookedSAETransformer

from sae_lens_gba.saved.loading import load
from tests.hub_fixtures import D_IN, D_SAE, HOOK, MakeSAE

TOKENS = torch.tensor([[0, 5, 9, 17, 3, 44]])


@pytest.fixture(scope="module", params=["hooked transformer", "bridge"])
def model(request: pytest.FixtureRequest, tiny_llm_folder: Path) -> Any:
    if request.param == "bridge":
        bridges = pytest.importorskip(
            "sae_lens.analysis.sae_transformer_bridge",
            reason="of TransformerLens 3",
            exc_type=ImportError,
        )
        return bridges.SAETransformerBridge.boot_transformers(str(tiny_llm_folder), device="cpu")
    hooked = request.getfixturevalue("tiny_hooked_transformer")
    model = HookedSAETransformer(hooked.cfg, tokenizer=hooked.tokenizer)
    model.load_state_dict(hooked.state_dict())
    return model


@pytest.fixture(params=["jumprelu", "relu"])
def sae(request: pytest.FixtureRequest, make_sae: MakeSAE, tmp_path: Path) -> Any:
    trained = make_sae(0, activation=request.param)
    trained.W_enc.data.copy_(torch.randn(D_IN, D_SAE))  # latents that fire on this model
    trained.save_inference_model(tmp_path / "run")
    return load(tmp_path / "run").sae


def acts_name(model: Any, sae: Any) -> str:
    """Name of the SAE's activations in the model's cache and hooks."""
    if hasattr(model, "get_sae_hook_name"):  # a bridge's name for it
        return model.get_sae_hook_name(sae)
    return f"{HOOK}.hook_sae_acts_post"


def test_its_activations_are_those_of_the_models_activations(model: Any, sae: Any) -> None:
    _, plain = model.run_with_cache(TOKENS)
    _, cache = model.run_with_cache_with_saes(TOKENS, saes=[sae])
    acts = cache[acts_name(model, sae)]
    assert acts.shape == (1, TOKENS.shape[1], D_SAE)
    assert (acts > 0).any()
    hook_name = acts_name(model, sae).removesuffix(".hook_sae_acts_post")
    torch.testing.assert_close(acts, sae.encode(plain[hook_name]), rtol=1e-4, atol=1e-5)


def test_its_reconstruction_takes_the_place_of_the_activations(model: Any, sae: Any) -> None:
    plain, replaced = model(TOKENS), model.run_with_saes(TOKENS, saes=[sae])
    assert replaced.shape == plain.shape
    assert not torch.allclose(replaced, plain, atol=1e-3)


def test_a_latent_turned_up_by_hand_steers_the_model(model: Any, sae: Any) -> None:
    def turn_up(acts: torch.Tensor, hook: Any) -> torch.Tensor:
        acts[..., 3] = 50.0
        return acts

    def reconstruction(fwd_hooks: list[Any]) -> torch.Tensor:
        return model.run_with_hooks_with_saes(TOKENS, saes=[sae], fwd_hooks=fwd_hooks)

    unsteered, steered = reconstruction([]), reconstruction([(acts_name(model, sae), turn_up)])
    assert torch.isfinite(steered).all()
    assert not torch.allclose(steered, unsteered, atol=1e-2)


def test_a_transcoder_stands_in_for_the_mlp(model: Any, make_sae: MakeSAE, tmp_path: Path) -> None:
    hook, target = "blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"
    trained = make_sae(0, architecture="gba_transcoder", d_out=D_IN, hook_name_out=target)
    trained.cfg.metadata.hook_name = hook
    trained.W_enc.data.copy_(torch.randn(D_IN, D_SAE))
    trained.save_inference_model(tmp_path / "run")
    transcoder: Any = load(tmp_path / "run").sae
    _, plain = model.run_with_cache(TOKENS, names_filter=[hook])
    (mlp_in,) = plain.values()  # a bridge has a name of its own for it
    there = model._resolve_hook_name(target) if hasattr(model, "_resolve_hook_name") else target
    by_hand = [(there, lambda mlp_out, hook: transcoder(mlp_in))]
    expected = model.run_with_hooks(TOKENS, fwd_hooks=by_hand)
    assert not torch.allclose(expected, model(TOKENS), atol=1e-3)
    with_it = model.run_with_saes(TOKENS, saes=[transcoder])
    torch.testing.assert_close(with_it, expected, rtol=1e-4, atol=1e-4)
