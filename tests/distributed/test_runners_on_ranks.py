"""SAELens' runners on several ranks: one set of files, as of one process."""

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from sae_lens import SAE, LoggingConfig
from safetensors.torch import load_file

from sae_lens_gba import NeuronGroups
from sae_lens_gba.distributed.trainer import LatentParallelTrainer
from sae_lens_gba.runs import models
from sae_lens_gba.runs.training import train_on_ranks
from tests.distributed.ranks_do import (
    command,
    command_that_goes_on,
    command_that_is_killed,
    command_that_is_stopped,
    n_steps_of,
    synthetic,
)
from tests.distributed.several import results, run
from tests.toolbox import (
    language_model_config,
    make_trainer,
    random_texts,
    take_steps,
    tiny_config,
    tiny_sae,
)

FLAGS = [
    "--d_in", "16", "--d_sae", "64", "--n_groups", "4", "--highest_target_frequency", "0.3",
    "--target_l0", "4", "--adapt_every_n_steps", "5", "--normalize_activations",
    "expected_average_only_in", "--hook_name", "blocks.0.hook_resid_post", "--model_name",
    "tiny/random", "--model_from_pretrained_kwargs", "{}", "--dataset_path", "tiny/texts",
    "--is_dataset_tokenized", "false", "--streaming", "false", "--train_batch_size_tokens", "63",
    "--context_size", "16", "--store_batch_size_prompts", "4", "--n_batches_in_buffer", "16",
    "--n_batches_for_norm_estimate", "2", "--n_eval_batches", "1", "--lr", "1e-3",
    "--device", "cpu", "--output_path", "out", "--n_checkpoints", "1",
    "--log_weights_to_wandb", "false",
    "--wandb_log_frequency", "3", "--eval_every_n_wandb_logs", "2",
]  # fmt: skip
TRANSCODER = [
    "--architecture", "gba_skip_transcoder", "--d_out", "16", "--hook_name_out",
    "blocks.0.hook_mlp_out",
]  # fmt: skip
WANDB = ["--log_to_wandb", "true", "--prefetch_llm_batches", "2"]


def test_the_command_logs_evaluates_and_writes_one_set_of_files(
    tmp_path: Path, tiny_llm_folder: Path
) -> None:
    flags = [*FLAGS, *WANDB, "--training_tokens", str(63 * 24)]
    ranks = run(command, 2, tmp_path / "said", tmp_path, tiny_llm_folder, *flags)
    assert [r.exit_code for r in ranks] == [0, 0], ranks[0].said + ranks[1].said
    assert ["--dry-run" in r.said for r in ranks] == [True, False]  # what may be done next
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1
    assert not (tmp_path / "out" / "resume").exists()
    stock = SAE.load_from_disk(tmp_path / "out")
    assert type(stock).__name__ == "JumpReLUSAE"
    assert stock.cfg.metadata.hook_name == "blocks.0.hook_resid_post"
    assert stock.cfg.metadata.l0 == pytest.approx(4.0, rel=0.02)
    assert len(NeuronGroups.load(tmp_path / "out").group) == 64
    assert len(load_file(tmp_path / "out" / "sparsity.safetensors")["sparsity"]) == 64
    # as a queue that starts it again does
    ranks = run(command, 2, tmp_path / "said", tmp_path, tiny_llm_folder, *flags, "--resume")
    assert [r.exit_code for r in ranks] == [0, 0], ranks[0].said


def test_ranks_that_are_killed_go_on_from_the_last_checkpoint_in_time(
    tmp_path: Path, tiny_llm_folder: Path
) -> None:
    flags = [*FLAGS, "--training_tokens", str(63 * 12), "--log_to_wandb", "false"]
    in_time = [*flags, "--n_checkpoints", "0", "--checkpoint_minutes", "1e-9"]
    run(command_that_is_killed, 2, tmp_path / "said", tmp_path, tiny_llm_folder, *in_time)
    found = sorted((tmp_path / "out" / "resume").iterdir(), key=lambda path: int(path.name))
    assert [int(path.name) for path in found] == [63 * 2, 63 * 3]  # the newest two
    assert n_steps_of(found[-1]) == 3
    resumed = [*in_time, "--resume"]
    run(command_that_is_killed, 2, tmp_path / "said", tmp_path, tiny_llm_folder, *resumed)
    found = sorted((tmp_path / "out" / "resume").iterdir(), key=lambda path: int(path.name))
    assert [int(path.name) for path in found] == [63 * 5, 63 * 6]  # of those of before, none
    assert n_steps_of(found[-1]) == 6
    for name, value in (("target_l0", "5.0"), ("lr", "0.5"), ("train_batch_size_tokens", "32")):
        other = [*flags, f"--{name}", value, "--resume"]
        ranks = run(command, 2, tmp_path / "said", tmp_path, tiny_llm_folder, *other)
        assert [r.exit_code for r in ranks] == [1, 1]
        assert f"{name}={value} differs from" in ranks[0].said
    asked_for = [*flags, "--n_checkpoints", "3", "--resume"]
    ranks = run(command, 2, tmp_path / "said", tmp_path, tiny_llm_folder, *asked_for)
    assert [r.exit_code for r in ranks] == [0, 0], ranks[0].said
    # those that were asked for stay, but for the one that was past; those in time go
    found = sorted((tmp_path / "checkpoints").glob("*/*"), key=lambda path: int(path.name))
    assert [int(path.name) for path in found] == [63 * 7, 63 * 10]
    assert not (tmp_path / "out" / "resume").exists()
    assert SAE.load_from_disk(tmp_path / "out").cfg.metadata.l0 == pytest.approx(4.0, rel=0.02)


@pytest.mark.parametrize(
    "of",
    [[], TRANSCODER, ["--prefetch_llm_batches", "2", "--n_batches_in_buffer", "64"]],
    ids=["SAE", "transcoder", "prefetched"],
)
def test_a_run_of_two_ranks_is_stopped_and_goes_on_with_three_and_with_one(
    tmp_path: Path, tiny_llm_folder: Path, of: list[str]
) -> None:
    flags = [*FLAGS, *of, "--training_tokens", str(63 * 30), "--log_to_wandb", "false"]
    ranks = run(command_that_is_stopped, 2, tmp_path / "said", tmp_path, tiny_llm_folder, *flags)
    assert [r.exit_code for r in ranks] == [1, 1]
    assert "SIGTERM" in ranks[1].said
    assert "Go on from the checkpoint" in ranks[1].said
    newest = max((tmp_path / "out" / "resume").iterdir(), key=lambda path: int(path.name))
    assert n_steps_of(newest) < 30
    if "--prefetch_llm_batches" not in of:  # else a thread reads on
        state = load_file(newest / "activations_store_state.safetensors")
        rows = sum(int((tmp_path / f"rows.{rank}").read_text()) for rank in range(2))
        # rank 1 had drawn a batch more when it heard of the signal
        assert int(state["n_dataset_processed"]) == pytest.approx(rows, abs=4)
    decoder = load_file(newest / "sae_weights.safetensors")["W_dec"]
    alone = tmp_path / "alone"
    copytree(tmp_path / "out", alone / "out")

    for world, folder in ((3, tmp_path), (1, alone)):
        resumed = [folder, tiny_llm_folder, *flags, "--resume"]
        first, *_ = results(command_that_goes_on, world, tmp_path / "said", *resumed)
        assert torch.equal(first["W_dec"], decoder)
        assert first["n_steps"] == 30
        stock = SAE.load_from_disk(folder / "out")
        assert stock.cfg.metadata.l0 == pytest.approx(4.0, rel=0.02)
        assert not (folder / "out" / "resume").exists()


def test_ranks_that_fine_tune_go_on_with_the_settings_of_the_sae(
    tmp_path: Path, tiny_hooked_transformer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "load_model", lambda *_, **__: tiny_hooked_transformer)
    (tmp_path / "texts").mkdir()
    random_texts().to_json(tmp_path / "texts" / "train.jsonl")
    sae = tiny_sae(l0_warm_up_steps=7)
    take_steps(make_trainer(sae, 10), 10)
    sae.save_model(tmp_path / "start")
    cfg = language_model_config(
        tmp_path / "out",
        sae=tiny_config(),
        dataset_path=str(tmp_path / "texts"),
        from_pretrained_path=str(tmp_path / "start"),
        logger=LoggingConfig(log_to_wandb=False),
    )
    with monkeypatch.context() as killed:
        step = LatentParallelTrainer._train_step

        def train_step(self: Any, **given: Any) -> Any:
            assert self.n_training_steps < 4, "killed"
            return step(self, **given)

        killed.setattr(LatentParallelTrainer, "_train_step", train_step)
        with pytest.raises(AssertionError, match="killed"):
            train_on_ranks(cfg, checkpoint_minutes=1e-9)
    train_on_ranks(cfg, resume=True)
    written = json.loads((tmp_path / "out" / "runner_cfg.json").read_text())
    assert written["sae"]["l0_warm_up_steps"] == 7
    # the caller's config is as it was: that of another run as well
    assert cfg.resume_from_checkpoint is None
    assert cfg.sae.l0_warm_up_steps == 0


def test_the_synthetic_runner(tmp_path: Path) -> None:
    d_sae = results(synthetic, 2, tmp_path / "said", tmp_path)
    assert d_sae == [64, 32]
    stock = SAE.load_from_disk(tmp_path)
    assert stock.cfg.metadata.l0 == pytest.approx(4.0, rel=0.02)
    assert (tmp_path / "eval_stats.json").is_file()


def test_another_architecture_ends_in_one_sentence(tmp_path: Path, tiny_llm_folder: Path) -> None:
    flags = ["--architecture", "topk", "--k", "4", "--d_in", "16", "--d_sae", "64"]
    ranks = run(command, 2, tmp_path / "said", tmp_path, tiny_llm_folder, *flags)
    assert [r.exit_code for r in ranks] == [1, 1]
    assert "architecture='topk' is not possible on several ranks" in ranks[1].said


def test_a_transcoder_by_the_command(tmp_path: Path, tiny_llm_folder: Path) -> None:
    flags = [*FLAGS, *TRANSCODER, *WANDB, "--training_tokens", str(63 * 24)]
    ranks = run(command, 2, tmp_path / "said", tmp_path, tiny_llm_folder, *flags)
    assert [r.exit_code for r in ranks] == [0, 0], ranks[0].said + ranks[1].said
    stock = SAE.load_from_disk(tmp_path / "out")
    assert type(stock).__name__ == "JumpReLUSkipTranscoder"
    assert stock.cfg.metadata.hook_name_out == "blocks.0.hook_mlp_out"
    assert stock.cfg.metadata.l0 == pytest.approx(4.0, rel=0.02)
