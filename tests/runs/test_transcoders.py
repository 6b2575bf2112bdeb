"""Transcoders of the tiny model: by the command, by SAELens' runners, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, load_from_disk
from sae_lens import SAE, LanguageModelSAERunnerConfig, LoggingConfig
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunnerConfig
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors.torch import load_file

from sae_lens_gba import GBATrainingSkipTranscoderConfig, GBATrainingTranscoderConfig, train
from sae_lens_gba.at_target import at_its_target, decoded
from sae_lens_gba.distributed import Ranks
from sae_lens_gba.distributed.runner import part_of_dataset
from sae_lens_gba.runs import models
from sae_lens_gba.runs.activation_pairs import join_cached_activations
from sae_lens_gba.runs.transcoders import (
    LatentParallelTranscoderRunner,
    TranscoderSetTrainingRunner,
    TranscoderTrainingRunner,
)
from tests.runs.interrupting import first_decoders, interrupt_at
from tests.toolbox import (
    D_MODEL,
    TINY_RUN,
    Cache,
    Train,
    make_trainer,
    mixture,
    take_steps,
    tiny_config,
    tiny_sae,
)

HOOK, TARGET = "blocks.0.ln2.hook_normalized", "blocks.0.hook_mlp_out"
OF_RUNS: dict[str, Any] = {
    **TINY_RUN,
    "training_tokens": 3072,
    "n_batches_for_norm_estimate": 2,
    "exclude_special_tokens": True,
    "lr": 1e-2,
}
Run = Callable[..., Any]


def transcoder(architecture: str = "gba_transcoder", **settings: Any) -> Any:
    defaults = {
        "d_in": D_MODEL,
        "d_out": None,
        "hook_name_out": TARGET,
        "calibration_samples": 1024,
    }
    return tiny_config(architecture, **{**defaults, **settings})


@pytest.fixture
def cfg(tmp_path: Path) -> Callable[..., LanguageModelSAERunnerConfig[Any]]:
    def make(**settings: Any) -> LanguageModelSAERunnerConfig[Any]:
        defaults = {
            "sae": transcoder(), "hook_name": HOOK, "is_dataset_tokenized": False,
            "output_path": str(tmp_path / "run"),
        }  # fmt: skip
        return LanguageModelSAERunnerConfig(**{**OF_RUNS, **defaults, **settings})

    return make


@torch.no_grad()
def explained_variance(sae: Any, model: Any, texts: Dataset, hook: str, target: str) -> float:
    tokens = torch.cat([model.to_tokens(text)[:, :16] for text in texts["text"][-50:]])
    _, cache = model.run_with_cache(tokens, prepend_bos=False)
    x, y = (cache[name][:, 1:].flatten(0, 1) for name in (hook, target))
    return float(1 - (sae(x) - y).square().sum() / (y - y.mean(dim=0)).square().sum())


@pytest.mark.parametrize("architecture", ["gba_transcoder", "gba_skip_transcoder"])
def test_a_transcoder_learns_what_an_mlp_does(
    cfg: Run, tiny_hooked_transformer: Any, tiny_texts: Dataset, tmp_path: Path, architecture: str
) -> None:
    scaled = transcoder(architecture, normalize_activations="expected_average_only_in")
    run = cfg(sae=scaled)
    train(run, model=tiny_hooked_transformer, dataset=tiny_texts)
    saved = SAE.load_from_disk(tmp_path / "run")
    assert saved.cfg.architecture() == architecture.replace("gba", "jumprelu")
    metadata = saved.cfg.metadata
    assert (metadata.hook_name, metadata.hook_name_out) == (HOOK, TARGET)
    assert metadata.l0 == pytest.approx(4.0, rel=0.02)
    of_mlp = (tiny_hooked_transformer, tiny_texts, HOOK, TARGET)
    assert explained_variance(saved, *of_mlp) > 0.4


def test_pairs_are_of_the_same_tokens(
    cfg: Run, tiny_hooked_transformer: Any, tiny_texts: Dataset
) -> None:
    # the MLP itself tells which target belongs to an input
    model = tiny_hooked_transformer
    runner = TranscoderTrainingRunner(cfg(), tiny_texts, model)
    for _ in range(20):
        x, y = next(runner.activations_store).split(D_MODEL, dim=1)
        assert len(x) == 64
        torch.testing.assert_close(model.blocks[0].mlp(x[None])[0], y, rtol=1e-4, atol=1e-5)


def test_all_mlps_are_learnt_in_one_pass(
    tiny_hooked_transformer: Any, tiny_texts: Dataset, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    hooks = {f"layer_{i}": f"blocks.{i}.ln2.hook_normalized" for i in range(2)}
    of_layer = [{"hook_name_out": f"blocks.{i}.hook_mlp_out"} for i in range(2)]
    cfg = MultiSAETrainingRunnerConfig(
        saes={name: transcoder(**at) for name, at in zip(hooks, of_layer, strict=True)},
        hook_names=hooks, output_path=str(tmp_path), **OF_RUNS,
    )  # fmt: skip
    asked_for: list[str] = []

    def load_model(*_: Any, hook_names: list[str], **__: Any) -> Any:
        asked_for.extend(hook_names)  # all there is of a model that is not TransformerLens'
        return tiny_hooked_transformer

    monkeypatch.setattr(models, "load_model", load_model)
    TranscoderSetTrainingRunner(cfg, tiny_texts).run()
    assert set(asked_for) == {*hooks.values(), *(at["hook_name_out"] for at in of_layer)}
    for name, hook in hooks.items():
        sae = SAE.load_from_disk(tmp_path / name)
        target = str(sae.cfg.metadata.hook_name_out)
        assert sae.cfg.metadata.hook_name == hook
        assert explained_variance(sae, tiny_hooked_transformer, tiny_texts, hook, target) > 0.4


def test_an_interrupted_run_goes_on(
    cfg: Run, tiny_hooked_transformer: Any, tiny_texts: Dataset, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        interrupt_at(patch, 9)
        with pytest.raises(SystemExit):
            train(cfg(), model=tiny_hooked_transformer, dataset=tiny_texts)
    checkpoint = tmp_path / "run" / "resume" / str(9 * 64)
    decoder = load_file(checkpoint / "sae_weights.safetensors")["W_dec"]
    begun = first_decoders(monkeypatch)
    train(cfg(), model=tiny_hooked_transformer, dataset=tiny_texts, resume=True)
    assert torch.equal(begun[-1], decoder)
    saved = SAE.load_from_disk(tmp_path / "run")
    assert saved.cfg.metadata.l0 == pytest.approx(4.0, rel=0.02)


def test_on_cached_pairs_it_goes_on_bit_equal(
    cfg: Run, cache_activations: Cache, tiny_hooked_transformer: Any, tiny_texts: Dataset,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    joined = join_cached_activations(
        cache_activations(HOOK), cache_activations(TARGET), tmp_path / "pairs"
    )
    assert {HOOK, TARGET} <= set(joined.column_names)
    cached = {
        "use_cached_activations": True, "cached_activations_path": str(tmp_path / "pairs"),
    }  # fmt: skip
    data = {"model": tiny_hooked_transformer, "dataset": tiny_texts}
    # more tokens than the cache has: it is read twice; whole, and as one of three ranks reads it
    for world in (1, 3):
        runner = TranscoderTrainingRunner(cfg(**cached), tiny_texts, tiny_hooked_transformer)
        store = runner.activations_store
        for part in LatentParallelTranscoderRunner.stores(runner):  # type: ignore[arg-type]
            ranks = Ranks(world - 1, world, torch.device("cpu"), watch=None)  # type: ignore[arg-type]
            part.cached_activation_dataset = part_of_dataset(part.cached_activation_dataset, ranks)
        for _ in range(50):
            x, y = next(store).split(D_MODEL, dim=1)
            expected = tiny_hooked_transformer.blocks[0].mlp(x[None])[0]
            torch.testing.assert_close(expected, y, rtol=1e-4, atol=1e-5)
    train(cfg(**cached, output_path=str(tmp_path / "whole")), **data)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 11)
        with pytest.raises(SystemExit):
            train(cfg(**cached), **data)
    train(cfg(**cached), **data, resume=True)
    for name in ("sae_weights.safetensors", "gba_groups.safetensors"):
        whole, resumed = (load_file(tmp_path / f / name) for f in ("whole", "run"))
        for key, value in whole.items():
            assert torch.equal(resumed[key], value), (name, key)


def test_caches_of_other_tokens_are_not_joined(
    cache_activations: Cache, tiny_texts: Dataset
) -> None:
    inputs, targets = cache_activations(HOOK), cache_activations(TARGET, tokens=1024)
    with pytest.raises(ValueError, match="not of the same tokens"):
        join_cached_activations(inputs, targets, inputs.parent / "pairs")
    with pytest.raises(ValueError, match=f"are both of {HOOK}: give the caches of two hooks"):
        join_cached_activations(inputs, inputs, inputs.parent / "pairs")
    reversed_texts = tiny_texts.select(range(len(tiny_texts) - 1, -1, -1))
    with pytest.raises(ValueError, match="not of the same tokens"):
        join_cached_activations(
            inputs,
            cache_activations("blocks.1.hook_mlp_out", reversed_texts),
            inputs.parent / "pairs",
        )
    assert load_from_disk(str(inputs)).num_rows == 128


def test_saelens_evaluates_it_at_its_target(tiny_hooked_transformer: Any, monkeypatch: Any) -> None:
    from sae_lens.evals import get_recons_loss

    # one that gives the MLP's own output: nothing changes
    model = tiny_hooked_transformer
    sae = SAE.from_dict(transcoder("gba_skip_transcoder").get_inference_sae_cfg_dict())
    sae.cfg.metadata.hook_name = HOOK
    exact = model.blocks[0].mlp
    monkeypatch.setattr("sae_lens_gba.at_target.decoded", lambda sae, acts, x: exact(x))
    tokens = torch.randint(2, 60, (3, 16))
    with at_its_target(sae, model) as seen_there:
        losses = get_recons_loss(seen_there, model, ActivationScaler(), tokens, False, True)
    torch.testing.assert_close(losses["ce_loss_with_sae"], losses["ce_loss_without_sae"])
    assert not torch.allclose(losses["ce_loss_with_ablation"], losses["ce_loss_without_sae"])
    monkeypatch.undo()
    with at_its_target(sae, model) as seen_there:
        losses = get_recons_loss(seen_there, model, ActivationScaler(), tokens, False, True)
    assert not torch.allclose(losses["ce_loss_with_sae"], losses["ce_loss_without_sae"])
    assert not model.hook_dict[HOOK]._forward_hooks  # none is left


def test_the_input_of_a_transcoder_is_scaled_and_may_have_attention_heads(
    tiny_hooked_transformer: Any,
) -> None:
    sae = SAE.from_dict(transcoder("gba_transcoder").get_inference_sae_cfg_dict())
    sae.cfg.metadata.hook_name = hook = "blocks.0.attn.hook_z"
    z: list[torch.Tensor] = []
    model = tiny_hooked_transformer
    with (
        at_its_target(sae, model, ActivationScaler(0.1)) as seen_there,
        model.hooks([(hook, lambda x, hook: z.append(x))]),
    ):
        model(torch.randint(2, 60, (3, 16)))
        assert z[0].ndim == 4
        torch.testing.assert_close(seen_there.encode(z[0]), sae.encode(0.1 * z[0].flatten(2)))


def test_what_saelens_logs_is_of_the_target(
    cfg: Run, tiny_hooked_transformer: Any, tiny_texts: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: dict[str, Any] = {}
    monkeypatch.setattr("wandb.log", lambda values, **_: logged.update(values))
    for name in ("wandb.init", "wandb.finish", "wandb.Histogram"):
        monkeypatch.setattr(name, lambda *_, **__: None)
    logger = LoggingConfig(
        wandb_log_frequency=2, eval_every_n_wandb_logs=2, log_weights_to_wandb=False
    )
    monkeypatch.setattr(LoggingConfig, "log", lambda *_, **__: None)
    scaled = transcoder(normalize_activations="expected_average_only_in")
    run = cfg(sae=scaled, logger=logger, n_eval_batches=2, output_path=None)
    TranscoderTrainingRunner(run, tiny_texts, tiny_hooked_transformer).run()
    assert 0.3 < logged["metrics/explained_variance"] < 1
    loss = logged["model_performance_preservation"]
    own, ablated = loss["ce_loss_without_sae"], loss["ce_loss_with_ablation"]
    # on either side: a random model's own is no minimum
    assert abs(loss["ce_loss_with_sae"] - own) < abs(ablated - own)


@pytest.fixture
def command(train: Train) -> Train:
    """Runs the command for a transcoder."""
    return partial(train, architecture="gba_transcoder", hook_name=HOOK, hook_name_out=TARGET)


def test_the_command_takes_widths_from_the_model(command: Train, tmp_path: Path) -> None:
    there = {"architecture": "gba_skip_transcoder", "hook_name_out": "blocks.0.mlp.hook_post"}
    assert command("--report", **there) == 0
    assert (tmp_path / "run" / "training_charts.png").is_file()
    cfg: Any = SAE.load_from_disk(tmp_path / "run").cfg
    assert (cfg.d_in, cfg.d_out) == (D_MODEL, 32)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"d_in": "16", "hook_name_out": "blocks.0.mlp.hook_post"},
         "d_out=16 is not possible: activations at blocks.0.mlp.hook_post of tiny/random have 32"),
        ({"d_out": "24"}, "d_out=24 is not possible: activations at blocks.0.hook_mlp_out"),
        ({"d_in": "24"}, f"d_in=24 is not possible: activations at {HOOK}"),
        ({"hook_name_out": "blocks.0.hook_mlp_ot"}, "did you mean blocks.0.hook_mlp_out"),
        ({"hook_name_out": "blocks.0.attn.hook_pattern"}, "has no row for each token"),
        ({"tied": "true"}, "tied=True is not possible: it must be False for a transcoder"),
        ({"normalize_activations": "covariance_whitening"},
         "must be 'none' or 'expected_average_only_in' for a transcoder"),
        ({"apply_b_dec_to_input": "true"}, "apply_b_dec_to_input=True is not possible"),
        ({"hook_head_index": "1"}, "a transcoder reads all heads together"),
    ],
)  # fmt: skip
def test_what_is_impossible_is_one_sentence(
    command: Train, changes: dict[str, str], sentence: str, caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:  # fmt: skip
    assert command(**changes) == 1
    assert sentence in caplog.text
    assert "\n" not in caplog.records[-1].getMessage()
    assert not any((tmp_path / "run").glob("*"))


def test_without_a_target_there_is_nothing_to_train(
    cfg: Run, command: Train, tiny_hooked_transformer: Any, tiny_texts: Dataset,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with pytest.raises(SystemExit):
        command(hook_name_out=None)
    assert "--hook_name_out is needed, such as blocks.8.hook_mlp_out" in capsys.readouterr().err
    with pytest.raises(ValueError, match="name the hook whose activations the transcoder is to"):
        train(cfg(sae=transcoder(hook_name_out="")), model=tiny_hooked_transformer)
    with pytest.raises(ValueError, match="architecture='gba' is no transcoder"):
        TranscoderTrainingRunner(cfg(sae=tiny_config()), tiny_texts, tiny_hooked_transformer)
    inputs_alone = make_trainer(tiny_sae(architecture="gba_transcoder"), 1, mixture(0))
    with pytest.raises(ValueError, match=r"side by side, \(n, d_in=16 \+ d_out=24\)"):
        take_steps(inputs_alone, 1)
    other = {"a": transcoder(), "b": transcoder(hook_name_out="blocks.1.hook_mlp_out")}
    run = MultiSAETrainingRunnerConfig(saes=other, hook_names=HOOK, **OF_RUNS)
    with pytest.raises(ValueError, match="one of them in another"):
        TranscoderSetTrainingRunner(run, tiny_texts, tiny_hooked_transformer)


def test_the_skip_connection_is_part_of_the_output() -> None:
    config = GBATrainingSkipTranscoderConfig(4, 8, target_l0=1.0, d_out=6)
    assert isinstance(config, GBATrainingTranscoderConfig)
    sae: Any = SAE.from_dict(config.get_inference_sae_cfg_dict())
    sae.W_skip.data.copy_(torch.randn(6, 4))
    x = torch.randn(5, 4)
    assert torch.equal(decoded(sae, sae.encode(x), x), sae(x))


def test_the_config_of_another_target_is_another_one() -> None:
    first = transcoder()
    other = replace(first, hook_name_out="blocks.1.hook_mlp_out")
    assert first.metadata.hook_name_out == first.hook_name_out
    assert other.metadata.hook_name_out == "blocks.1.hook_mlp_out"
