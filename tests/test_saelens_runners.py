"""Every way SAELens trains, with ours selected as any other architecture."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens import (
    SAE,
    CacheActivationsRunner,
    CacheActivationsRunnerConfig,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.multi_sae_training_runner import (
    MultiSAETrainingRunner,
    MultiSAETrainingRunnerConfig,
)
from sae_lens.saes.sae import TrainingSAEConfig
from sae_lens.synthetic import SyntheticModelConfig, SyntheticSAERunner, SyntheticSAERunnerConfig
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_gba import GBATrainingSAE, NeuronGroups
from sae_lens_gba.cli import main, train
from tests.toolbox import D_MODEL, mixture, tiny_config, trainer_config

HOOK = "blocks.0.hook_resid_post"


def runner_config(output: Path, **settings: Any) -> LanguageModelSAERunnerConfig[Any]:
    defaults: dict[str, Any] = {
        "sae": tiny_config(d_in=D_MODEL),
        "model_name": "tiny/random",
        "model_from_pretrained_kwargs": {},
        "hook_name": HOOK,
        "dataset_path": "tiny/texts",
        "is_dataset_tokenized": False,
        "streaming": False,
        "context_size": 16,
        "training_tokens": 1536,
        "train_batch_size_tokens": 64,
        "store_batch_size_prompts": 4,
        "n_batches_in_buffer": 16,
        "n_batches_for_norm_estimate": 2,
        "n_eval_batches": 1,
        "lr": 1e-3,
        "device": "cpu",
        "logger": LoggingConfig(log_to_wandb=False),
        "output_path": str(output),
        "checkpoint_path": None,
    }
    return LanguageModelSAERunnerConfig(**{**defaults, **settings})


def assert_trained(folder: Path, sae: TrainingSAE[Any]) -> None:
    assert type(sae) is GBATrainingSAE
    assert int(sae.adapter.n_steps) > 0
    assert float(sae.bias.sum()) < 0
    loaded = SAE.load_from_disk(folder)
    x = torch.randn(10, D_MODEL)
    assert torch.equal(loaded.encode(x), sae.encode(x))
    assert torch.equal(NeuronGroups.load(folder).measured_frequency, sae.adapter.frequency)


@pytest.mark.parametrize("model", ["tiny_bridge", "tiny_hooked_transformer"])
@pytest.mark.parametrize("normalize", ["none", "expected_average_only_in", "covariance_whitening"])
def test_language_model_runner(
    tmp_path: Path, tiny_texts: Dataset, model: str, normalize: str, request: Any
) -> None:
    cfg = runner_config(tmp_path, sae=tiny_config(d_in=D_MODEL, normalize_activations=normalize))
    runner = LanguageModelSAETrainingRunner(
        cfg, override_model=request.getfixturevalue(model), override_dataset=tiny_texts
    )
    assert_trained(tmp_path, runner.run())
    assert json.loads((tmp_path / "runner_cfg.json").read_text())["sae"]["architecture"] == "gba"


def test_language_model_runner_on_hook_z(
    tmp_path: Path, tiny_texts: Dataset, tiny_hooked_transformer: Any
) -> None:
    cfg = runner_config(
        tmp_path,
        hook_name="blocks.0.attn.hook_z",
        sae=tiny_config(d_in=D_MODEL, reshape_activations="hook_z"),
    )
    sae = LanguageModelSAETrainingRunner(
        cfg, override_model=tiny_hooked_transformer, override_dataset=tiny_texts
    ).run()
    assert int(sae.adapter.n_steps) > 0
    heads = torch.randn(3, 5, 4, 4)
    assert SAE.load_from_disk(tmp_path)(heads).shape == heads.shape


def test_language_model_runner_with_evals_compiled_and_logged(
    tmp_path: Path, tiny_texts: Dataset, tiny_bridge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    logger = LoggingConfig(
        log_to_wandb=True,
        log_weights_to_wandb=False,
        wandb_log_frequency=3,
        eval_every_n_wandb_logs=2,
    )
    cfg = runner_config(
        tmp_path / "out", logger=logger, compile_sae=True, n_checkpoints=1, checkpoint_path="ckpt"
    )
    # the plain runner compiles with inductor, which wants a C++ compiler; ours needs none
    monkeypatch.setattr(torch, "compile", lambda f, **_: _compile_eagerly(f))
    sae = LanguageModelSAETrainingRunner(
        cfg, override_model=tiny_bridge, override_dataset=tiny_texts
    ).run()
    assert_trained(tmp_path / "out", sae)
    (checkpoint,) = Path(str(cfg.checkpoint_path)).glob("*")
    assert type(TrainingSAE.load_from_disk(checkpoint)) is GBATrainingSAE


_torch_compile = torch.compile


def _compile_eagerly(function: Any) -> Any:
    return _torch_compile(function, backend="aot_eager")


def test_cached_activations_then_fine_tuning(
    tmp_path: Path,
    tiny_texts: Dataset,
    tiny_hooked_transformer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # this runner takes no model of the caller's
    monkeypatch.setattr(
        "sae_lens.cache_activations_runner.load_model", lambda **_: tiny_hooked_transformer
    )
    cache = CacheActivationsRunnerConfig(
        dataset_path="tiny/texts",
        model_name="tiny/random",
        model_batch_size=4,
        hook_name=HOOK,
        d_in=D_MODEL,
        training_tokens=2048,
        context_size=16,
        new_cached_activations_path=str(tmp_path / "cache"),
        buffer_size_gb=1e-5,  # the default fills 2 GB before it writes anything
        model_from_pretrained_kwargs={},
        dtype="float32",
        device="cpu",
    )
    CacheActivationsRunner(cache, override_dataset=tiny_texts).run()

    def fit(name: str, **settings: Any) -> Any:
        return LanguageModelSAETrainingRunner(
            runner_config(tmp_path / name, **settings),
            override_model=tiny_hooked_transformer,
            override_dataset=tiny_texts,
        ).run()

    first = fit(
        "first", use_cached_activations=True, cached_activations_path=str(tmp_path / "cache")
    )
    first.save_model(tmp_path / "checkpoint")
    second = fit("second", from_pretrained_path=str(tmp_path / "checkpoint"))
    assert_trained(tmp_path / "second", second)
    assert int(second.adapter.n_steps) == 2 * int(first.adapter.n_steps)


def test_the_runner_resumes_from_a_checkpoint(
    tmp_path: Path, tiny_texts: Dataset, tiny_hooked_transformer: Any
) -> None:
    # bit-equality is shown with SAETrainer (test_checkpoint_resume.py): the runner's activation
    # buffer is not part of SAELens' checkpoints, so its data go on in another order
    def fit(name: str, **settings: Any) -> tuple[Any, Any]:
        cfg = runner_config(tmp_path / name, **settings)
        runner = LanguageModelSAETrainingRunner(
            cfg, override_model=tiny_hooked_transformer, override_dataset=tiny_texts
        )
        return runner.run(), cfg

    part, cfg = fit(
        "part", training_tokens=832, save_final_checkpoint=True,
        checkpoint_path=str(tmp_path / "checkpoints"),
    )  # fmt: skip
    (checkpoint,) = Path(cfg.checkpoint_path).glob("final_*")
    resumed, _ = fit("resumed", resume_from_checkpoint=str(checkpoint))
    assert (int(part.adapter.n_steps), int(resumed.adapter.n_steps)) == (13, 24)
    assert_trained(tmp_path / "resumed", resumed)


def test_synthetic_runner(tmp_path: Path) -> None:
    model = SyntheticModelConfig(num_features=48, hidden_dim=16, seed=0)
    result: Any = SyntheticSAERunner(
        SyntheticSAERunnerConfig(
            synthetic_model=model,
            sae=tiny_config(),
            training_samples=64 * 40,
            batch_size=64,
            eval_samples=500,
            output_path=str(tmp_path),
            checkpoint_path=None,
            logger=LoggingConfig(log_to_wandb=False),
        )
    ).run()
    assert int(result.sae.adapter.n_steps) == 40
    assert type(SAE.load_from_disk(tmp_path)).__name__ == "JumpReLUSAE"


def test_trainer_directly() -> None:
    sae = TrainingSAE.from_dict(tiny_config().to_dict())
    trained: Any = SAETrainer(trainer_config(20), sae, mixture(0)).fit()
    assert int(trained.adapter.n_steps) == 20
    assert float(trained.bias.sum()) < 0


def test_beside_topk_on_one_model(
    tmp_path: Path, tiny_texts: Dataset, tiny_hooked_transformer: Any
) -> None:
    cfg = MultiSAETrainingRunnerConfig(
        saes={"gba": tiny_config(d_in=D_MODEL), "topk": TopKTrainingSAEConfig(D_MODEL, 64, k=4)},
        hook_names=HOOK,
        model_name="tiny/random",
        model_from_pretrained_kwargs={},
        dataset_path="tiny/texts",
        streaming=False,
        context_size=16,
        training_tokens=1536,
        train_batch_size_tokens=64,
        store_batch_size_prompts=4,
        n_batches_in_buffer=16,
        logger=LoggingConfig(log_to_wandb=False),
        output_path=str(tmp_path),
        checkpoint_path=None,
    )
    saes = MultiSAETrainingRunner(
        cfg, override_model=tiny_hooked_transformer, override_dataset=tiny_texts
    ).run()
    assert_trained(tmp_path / "gba", saes["gba"])
    assert type(SAE.load_from_disk(tmp_path / "topk")).__name__ == "TopKSAE"


def test_selected_by_dictionary() -> None:
    cfg = TrainingSAEConfig.from_dict(
        {"architecture": "gba", "d_in": 16, "d_sae": 64, "n_groups": 4, "target_l0": 4.0}
    )
    assert type(TrainingSAE.from_dict(cfg.to_dict())) is GBATrainingSAE


COMMAND_LINE = [
    "--d_in", "16", "--d_sae", "64", "--n_groups", "4", "--highest_target_frequency", "0.3",
    "--target_l0", "4", "--tied", "true", "--bias_update", "log_proportional",
    "--model_name", "tiny/random", "--hook_name", HOOK, "--dataset_path", "tiny/texts",
    "--training_tokens", "640", "--train_batch_size_tokens", "64", "--context_size", "16",
]  # fmt: skip


@pytest.mark.parametrize("named", [[], ["--architecture", "gba"]], ids=["default", "named"])
def test_command_line_gives_saelens_flags_and_ours(
    named: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    class Runner:
        def __init__(self, cfg: Any):
            seen.append(cfg)

        def run(self) -> None:
            seen.append("ran")

    monkeypatch.setattr("sae_lens.llm_sae_training_runner.LanguageModelSAETrainingRunner", Runner)
    assert main(["train", *named, *COMMAND_LINE]) == 0
    cfg, ran = seen
    assert ran == "ran"
    assert cfg.sae.architecture() == "gba"
    assert (cfg.sae.tied, cfg.sae.target_l0, cfg.sae.bias_update) == (True, 4.0, "log_proportional")
    assert cfg.training_tokens == 640


def test_command_line_trains_other_architectures_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("sae_lens.llm_sae_training_runner._run_cli", seen.append)
    train(["--architecture", "topk", "--k", "8"])
    assert seen == [["--architecture", "topk", "--k", "8"]]


def test_command_line_help_documents_our_fields(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train(["--architecture", "gba", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Active latents a sample to train towards" in text


def test_impossible_settings_on_the_command_line_end_in_one_sentence(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert main(["train", *COMMAND_LINE, "--target_l0", "1000"]) == 1
    assert "target_l0=1000" in caplog.text
