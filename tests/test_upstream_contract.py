"""What this package relies on in SAELens and TransformerLens, one test a contract.

A new release that breaks one fails here, by name.
"""

import dataclasses
import inspect
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from packaging.requirements import Requirement
from sae_lens import (
    JumpReLUSAE,
    JumpReLUSAEConfig,
    JumpReLUSkipTranscoder,
    JumpReLUSkipTranscoderConfig,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    StandardSAE,
    StandardSAEConfig,
    TrainingSAE,
)
from sae_lens.analysis.hooked_sae_transformer import _SAEWrapper
from sae_lens.evals import get_recons_loss, run_evals
from sae_lens.llm_sae_training_runner import LLMSaeEvaluator
from sae_lens.multi_sae_training_runner import MultiSAEEvaluator, MultiSAETrainingRunner
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, register_sae_training_class
from sae_lens.saes.sae import TrainingSAEConfig, TrainStepInput, TrainStepOutput
from sae_lens.synthetic import SyntheticSAERunner, synthetic_sae_runner
from sae_lens.training import sae_trainer
from sae_lens.training.activations_store import ActivationsStore
from safetensors import SafetensorError
from torch.optim import Adam

import sae_lens_gba
from sae_lens_gba import GBATrainingSAE, GBATrainingSAEConfig
from sae_lens_gba.runs.interruption import Interruption
from tests.runs.interrupting import interrupt_at
from tests.toolbox import make_trainer, mixture, take_steps, tiny_config


def test_a_second_registration_under_a_name_is_refused_upstream_and_harmless_here() -> None:
    with pytest.raises(ValueError, match="already registered"):
        register_sae_training_class("gba", GBATrainingSAE, GBATrainingSAEConfig)
    sae_lens_gba.register()
    assert SAE_TRAINING_CLASS_REGISTRY["gba"] == (GBATrainingSAE, GBATrainingSAEConfig)


def test_the_training_pass_is_called_by_keyword_with_these_fields() -> None:
    parameters = inspect.signature(TrainingSAE.training_forward_pass).parameters
    assert list(parameters) == ["self", "step_input"]
    assert [f.name for f in dataclasses.fields(TrainStepInput)] == [
        "sae_in", "coefficients", "dead_neuron_mask", "n_training_steps", "is_logging_step",
    ]  # fmt: skip
    assert {"feature_acts", "hidden_pre", "loss", "losses", "metrics"} <= {
        f.name for f in dataclasses.fields(TrainStepOutput)
    }


def test_the_trainer_optimises_with_adam_over_all_parameters() -> None:
    sae = GBATrainingSAE(tiny_config())
    trainer = make_trainer(sae, 1)
    assert type(trainer.optimizer) is Adam
    ours = {id(p) for p in sae.parameters()}
    assert {id(p) for g in trainer.optimizer.param_groups for p in g["params"]} == ours


def test_the_trainer_clips_gradients_by_torchs_function_once_a_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # LatentParallelTrainer has its own in that place
    norms: list[float] = []
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda _, norm: norms.append(norm))
    take_steps(make_trainer(GBATrainingSAE(tiny_config()), 2), 2)
    assert norms == [1.0, 1.0]


def test_the_synthetic_runner_makes_the_trainer_that_its_module_names() -> None:
    # which sae_lens_gba.distributed.runner replaces; progress bars likewise
    assert vars(synthetic_sae_runner)["SAETrainer"] is sae_trainer.SAETrainer
    names = SyntheticSAERunner.run.__code__.co_names
    assert {"SAETrainer", "fit"} <= set(names)
    assert "tqdm" in sae_trainer.SAETrainer.fit.__code__.co_names


def test_the_trainer_counts_sparse_activations_like_dense_ones() -> None:
    scores = []
    for density in (0.0, 1.0):
        torch.manual_seed(0)
        sae = GBATrainingSAE(tiny_config(sparse_below_density=density))
        trainer = make_trainer(sae, 3, mixture(0))
        take_steps(trainer, 1)
        scores.append(
            (trainer.act_freq_scores.clone(), trainer.n_forward_passes_since_fired.clone())
        )
    assert torch.equal(scores[0][0].to_dense(), scores[1][0].to_dense())
    assert torch.equal(scores[0][1], scores[1][1])


def test_stock_jumprelu_encodes_as_our_export_expects() -> None:
    sae = JumpReLUSAE(JumpReLUSAEConfig(2, 2))
    assert {n for n, _ in sae.named_parameters()} == {
        "W_enc",
        "b_enc",
        "W_dec",
        "b_dec",
        "threshold",
    }
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
        sae.threshold.fill_(1.0)
    # strictly above the threshold, and then as loud as the pre-activation
    assert sae.encode(torch.tensor([[1.0, 1.5]])).tolist() == [[0.0, 1.5]]


def test_stock_standard_has_the_parameters_our_export_writes() -> None:
    sae = StandardSAE(StandardSAEConfig(2, 2))
    assert {n for n, _ in sae.named_parameters()} == {"W_enc", "b_enc", "W_dec", "b_dec"}


def test_an_unknown_architecture_is_a_bare_key_error_upstream() -> None:
    # why the README says which import is needed
    with pytest.raises(KeyError):
        TrainingSAEConfig.from_dict({"architecture": "no-such", "d_in": 2, "d_sae": 2})


def test_the_command_line_is_where_we_call_it() -> None:
    from sae_lens.llm_sae_training_runner import _parse_cfg_args

    cfg = _parse_cfg_args(["--architecture", "gba", "--d_sae", "64", "--output_path", "here"])
    assert (cfg.sae.architecture(), cfg.sae.d_sae, cfg.output_path) == ("gba", 64, "here")


def test_saelens_does_not_allow_transformerlens_4_yet() -> None:
    # its issue 738; once this fails, raise our own limit in pyproject.toml and run all tests
    (theirs,) = (
        requirement
        for requirement in map(Requirement, requires("sae-lens") or [])
        if requirement.name == "transformer-lens"
    )
    assert not theirs.specifier.contains("4.3.0")


def test_hook_points_have_what_we_use() -> None:
    from transformer_lens.hook_points import HookPoint

    point = HookPoint()
    # torch's own hooks are called, see the output, and outlive a reset
    seen: list[torch.Tensor] = []
    handle = point.register_forward_hook(lambda module, args, tensor: seen.append(tensor))
    point.remove_hooks("both", including_permanent=True)
    point(torch.ones(1))
    handle.remove()
    point(torch.ones(1))
    assert len(seen) == 1


def test_our_process_sae_in_is_saelens_where_the_scale_of_the_inputs_is_one() -> None:
    for settings in ({}, {"apply_b_dec_to_input": False}, {"normalize_activations": "layer_norm"}):
        sae = GBATrainingSAE(tiny_config(**settings))
        sae.b_dec.data.normal_()
        x = torch.randn(5, 16)
        assert torch.equal(sae.process_sae_in(x), TrainingSAE.process_sae_in(sae, x))


def test_the_trainers_seams_for_checkpoints_and_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    # once before each step, and once after it with the bar
    trainer = make_trainer(GBATrainingSAE(tiny_config()), 3)
    seen: list[tuple[str, int]] = []

    def before() -> dict[str, object]:
        seen.append(("before", trainer.n_training_steps))
        return {}

    def after(_step: object, _bar: object) -> None:
        seen.append(("after", trainer.n_training_steps))

    monkeypatch.setattr(trainer, "maybe_reset_sparsity", before)
    monkeypatch.setattr(trainer, "_update_pbar", after)
    trainer.fit()
    assert seen == [("before", 0), ("after", 1), ("before", 1), ("after", 2), ("before", 2),
                    ("after", 3)]  # fmt: skip


def test_an_interrupt_loses_the_run_upstream(
    tmp_path: Path, tiny_texts: Dataset, tiny_hooked_transformer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # docs/upstream.md has a patch
    cfg = LanguageModelSAERunnerConfig(
        sae=tiny_config(), model_name="tiny/random", hook_name="blocks.0.hook_resid_post",
        model_from_pretrained_kwargs={}, dataset_path="tiny/texts", streaming=False,
        context_size=16, training_tokens=640, train_batch_size_tokens=64,
        store_batch_size_prompts=4, n_batches_in_buffer=16, checkpoint_path=str(tmp_path),
        logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    runner = LanguageModelSAETrainingRunner(
        cfg, override_model=tiny_hooked_transformer, override_dataset=tiny_texts
    )
    interrupt_at(monkeypatch, 3)
    with Interruption().handlers_restored(), pytest.raises(SafetensorError, match="No such file"):
        runner.run()
    assert list(tmp_path.iterdir()) == []


def test_a_store_of_several_hooks_is_made_so_of_one_of_one_hook(
    tiny_hooked_transformer: Any, tiny_texts: Dataset
) -> None:
    # which sae_lens_gba.runs.activation_pairs does
    settings: dict[str, Any] = {"context_size": 16, "dataset": tiny_texts, "streaming": False}
    widths = {"blocks.0.hook_mlp_out": 16, "blocks.0.mlp.hook_post": 32}
    theirs = ActivationsStore.from_config_multi_hook(
        tiny_hooked_transformer, hook_names=list(widths), hook_d_ins=widths, **settings
    )
    single = ActivationsStore.from_config_multi_hook(
        tiny_hooked_transformer, hook_names=[next(iter(widths))], hook_d_ins=widths, **settings
    )
    differ = {k for k, v in vars(theirs).items() if k in vars(single) and vars(single)[k] is not v}
    assert {"_hook_names", "_hook_d_ins"} <= differ
    assert (theirs._hook_names, theirs._hook_d_ins) == (list(widths), widths)
    names = ActivationsStore.__next__.__code__.co_names
    assert "get_data_loader" in names  # which is replaced
    assert (
        "get_filtered_llm_batch" in ActivationsStore._iterate_filtered_activations.__code__.co_names
    )
    assert "get_multi_hook_data_loader" in MultiSAETrainingRunner.run.__code__.co_names


def test_the_runners_evaluators_are_dataclasses_and_give_the_sae_to_run_evals() -> None:
    for cls in (LLMSaeEvaluator, MultiSAEEvaluator):
        assert dataclasses.is_dataclass(cls)
        assert "run_evals" in cls.__call__.__code__.co_names


def test_stock_transcoders_centre_no_inputs_and_skip_from_them_as_they_are() -> None:
    cfg = JumpReLUSkipTranscoderConfig(d_in=2, d_sae=2, d_out=3, apply_b_dec_to_input=False)
    sae = JumpReLUSkipTranscoder(cfg)
    names = {"W_enc", "b_enc", "W_dec", "b_dec", "threshold", "W_skip"}
    assert {n for n, _ in sae.named_parameters()} == names
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
        sae.W_dec.copy_(torch.eye(3)[:2])
        sae.threshold.fill_(1.0)
        sae.b_dec.fill_(5.0)
        sae.W_skip.copy_(torch.eye(3)[:, :2] * 10)
    x = torch.tensor([[1.0, 1.5]])
    acts = sae.encode(x)
    assert acts.tolist() == [[0.0, 1.5]]
    assert sae.decode(acts).tolist() == [[5.0, 6.5, 5.0]]
    assert sae(x).tolist() == [[15.0, 21.5, 5.0]]
    with pytest.raises(ValueError, match="apply_b_dec_to_input"):
        JumpReLUSkipTranscoderConfig(d_in=2, d_sae=2, d_out=3)


def test_saelens_evaluates_and_splices_in_no_skip_transcoder() -> None:
    # why there is at_its_target; see docs/upstream.md
    assert "hook_name_out" not in {*get_recons_loss.__code__.co_names, *run_evals.__code__.co_names}
    cfg = JumpReLUSkipTranscoderConfig(d_in=2, d_sae=2, d_out=3, apply_b_dec_to_input=False)
    sae = JumpReLUSkipTranscoder(cfg)
    sae.W_skip.data.fill_(1.0)
    x = torch.ones(1, 2)
    wrapper = _SAEWrapper(sae)
    wrapper.capture_input(x)
    assert torch.equal(wrapper(torch.zeros(1, 3)), sae.decode(sae.encode(x)))
    assert not torch.equal(sae(x), sae.decode(sae.encode(x)))
    with pytest.raises(RuntimeError, match="dtype"):
        sae(x.double())
