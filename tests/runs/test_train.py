"""The train command and `sae_lens_gba.train`, on the tiny model: from flags to the saved SAE."""

import json
import logging
import signal
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset
from sae_lens import SAE, LanguageModelSAETrainingRunner
from sae_lens.load_model import load_model
from safetensors.torch import load_file
from transformers import LlamaConfig

from sae_lens_gba import GBATrainingSAE, resumable_run
from sae_lens_gba.runs import models, training
from sae_lens_gba.saved.loading import load, to_training_sae
from sae_lens_gba.sources import load_text, require_context
from sae_lens_gba_command import main
from tests.runs.interrupting import first_decoders, interrupt_at
from tests.toolbox import (
    D_MODEL,
    HOOK,
    TRAIN_FLAGS,
    Cache,
    Train,
    language_model_config,
    tiny_config,
)


def test_a_run_ends_with_its_folder_l0_and_the_next_commands(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert train() == 0
    sae = SAE.load_from_disk(tmp_path / "run")
    assert (sae.cfg.d_in, sae.cfg.d_sae) == (D_MODEL, 64)  # d_in is the model's
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "cfg.json", "sae_weights.safetensors", "sparsity.safetensors", "runner_cfg.json",
        "gba_groups.safetensors", "gba_checksums.json",
    }  # fmt: skip
    for said in (str(tmp_path / "run"), "L0 asked 4, got 4", "sae-lens-gba report", "--dry-run"):
        assert said in caplog.text
    settings = json.loads((tmp_path / "run" / "runner_cfg.json").read_text())
    assert (settings["lr"], settings["lr_decay_steps"]) == (0.005, 6)  # a quarter of 24 steps
    details = sae.cfg.metadata.training_architecture_details
    assert details["l0_warm_up_steps"] == 24
    assert settings["exclude_special_tokens"] is True
    assert train("--resume") == 0  # of a run that has ended: nothing to do
    assert "has ended" in caplog.text


@pytest.mark.parametrize("has_gpu", [True, False])
def test_it_trains_on_the_gpu_where_there_is_one(
    has_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Any] = []
    monkeypatch.setattr(training, "train", lambda cfg, **_: taken.append(cfg))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    settings = {name: value for name, value in TRAIN_FLAGS.items() if name != "device"}
    given = [part for name, value in settings.items() for part in (f"--{name}", value)]
    for flags in ([], ["--device", "meta"]):
        assert main(["train", "--dataset_path", "texts", *given, *flags]) == 0
    assert [cfg.device for cfg in taken] == ["cuda" if has_gpu else "cpu", "meta"]
    assert taken[0].llm_device == taken[0].device


def test_an_interrupted_run_goes_on(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 9)
        with pytest.raises(SystemExit) as end:
            train("--overwrite")
    assert end.value.code == 130
    assert "--resume" in caplog.text
    assert train() == 1
    assert "holds a run that was interrupted" in caplog.text
    assert train("--resume", training_tokens="3072") == 1
    assert "give training_tokens=1536" in caplog.text
    assert train("--resume", lr="0.5") == 1
    assert "lr=0.5 differs from 0.005" in caplog.text
    for name, value in (("hook_name", "blocks.0.hook_mlp_out"), ("seed", "7")):
        assert train("--resume", **{name: value}) == 1
        assert f"the run's {name}=" in caplog.text
    checkpoint = tmp_path / "run" / "resume" / str(9 * 64)
    saved = load_file(checkpoint / "sae_weights.safetensors")["W_dec"]
    begun = first_decoders(monkeypatch)
    assert train("--resume") == 0
    assert torch.equal(begun[-1], saved)
    sae = SAE.load_from_disk(tmp_path / "run")
    assert sae.cfg.metadata.l0 == pytest.approx(4.0, rel=0.02)
    assert not (tmp_path / "run" / "resume").exists()
    assert train("--resume") == 0  # as a scheduler may start it once more
    assert train("--resume", **{"target-l0": "5"}) == 1  # that one has not ended
    assert "the SAE's target_l0=5.0 differs from 4.0" in caplog.text


def test_the_files_of_a_finished_run_appear_together(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def be_killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        # of SAELens' own files, after those of the SAE
        patch.setattr("sae_lens.llm_sae_training_runner.save_file", be_killed)
        assert train() == 130
    assert not (tmp_path / "run").exists()
    assert train("--resume") == 0
    assert load(tmp_path / "run").runner_cfg


def test_on_cached_activations_it_goes_on_bit_equal(
    train: Train, cache_activations: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = {
        "use_cached_activations": "true",
        "cached_activations_path": str(cache_activations()),
        "normalize_activations": "expected_average_only_in",
        "n_batches_for_norm_estimate": "3",
    }
    assert train(**cached, output_path=str(tmp_path / "whole")) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 11, signal.SIGTERM)
        with pytest.raises(SystemExit) as end:
            train(**cached)
    assert end.value.code == 143
    assert train("--resume", **cached) == 0
    for name in ("sae_weights.safetensors", "gba_groups.safetensors", "sparsity.safetensors"):
        whole, resumed = (load_file(tmp_path / f / name) for f in ("whole", "run"))
        for key, value in whole.items():
            assert torch.equal(resumed[key], value), (name, key)


@pytest.mark.parametrize(
    ("flags", "changes", "sentence"),
    [
        ((), {"d_in": "512"}, "have 16 dimensions; leave --d_in out, or pass 16"),
        ((), {"hook_name": "blocks.0.hook_resid_pots"}, "did you mean blocks.0.hook_resid_post"),
        ((), {"n_batches_in_buffer": "2"}, "it must be at least 4"),
        ((), {"target-l0": "1000"}, "target_l0=1000.0 can't be reached"),
        (
            (),
            {"context_size": "4096", "n_batches_in_buffer": "8"},
            "has 64 positions; give at most",
        ),
        ((), {"checkpoint_minutes": "-1"}, "checkpoint_minutes=-1.0 is not possible"),
        ((), {"training_tokens": "63"}, "at least a batch, train_batch_size_tokens=64"),
        ((), {"train_batch_size_tokens": "0"}, "train_batch_size_tokens=0 is not possible"),
        ((), {"store_batch_size_prompts": "0"}, "store_batch_size_prompts=0 is not possible"),
        ((), {"lr": "-1"}, "lr=-1.0 is not possible: it must be above 0"),
        ((), {"feature_sampling_window": "0"}, "feature_sampling_window=0 is not possible"),
        ((), {"lr_warm_up_steps": "-1"}, "lr_warm_up_steps=-1 is not possible: it must be 0 or"),
        ((), {"lr_scheduler_name": "linear"}, "must be one of constant, cosineannealing,"),
        ((), {"device": "cuda:77"}, "device='cuda:77' is not possible here"),
        ((), {"dataset_path": __file__}, "is a file: put it into a folder"),
        (("--seqpos_slice", "14", "16"), {}, "with 2 tokens a context the buffer holds 32"),
        (
            (),
            {"lr_end": "0", "lr_decay_steps": "5", "lr_scheduler_name": "cosineannealing"},
            "lr_decay_steps=5 is not possible with lr_end=0",
        ),
        ((), {"from_pretrained_path": "nowhere"}, "nowhere is not possible: it has no cfg.json"),
        (("--tied", "perhaps"), {}, "tied"),
    ],
)
def test_what_is_impossible_is_one_sentence_and_leaves_nothing(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture, flags: tuple[str, ...],
    changes: dict[str, str], sentence: str,
) -> None:  # fmt: skip
    assert train(*flags, **changes) == 1
    assert sentence in caplog.text
    assert "\n" not in caplog.records[-1].getMessage()
    assert not (tmp_path / "run").exists()


def test_an_earlier_run_is_replaced_only_once_the_new_one_can_train(
    train: Train, tmp_path: Path
) -> None:
    assert train() == 0
    before = (tmp_path / "run" / "sae_weights.safetensors").read_bytes()
    for impossible in ({"hook_name": "blocks.9.hook_resid_post"}, {"dataset_path": "nowhere"}):
        assert train("--overwrite", **impossible) == 1
        assert (tmp_path / "run" / "sae_weights.safetensors").read_bytes() == before
    assert train("--overwrite", seed="7") == 0
    assert (tmp_path / "run" / "sae_weights.safetensors").read_bytes() != before


def of_transformers(**settings: Any) -> Any:
    return SimpleNamespace(model=SimpleNamespace(config=LlamaConfig(**settings)))


YARN = {
    "rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "is_refused"),
    [
        (SimpleNamespace(), False),
        (SimpleNamespace(cfg=SimpleNamespace(n_ctx=64)), True),
        (of_transformers(max_position_embeddings=64), True),
        (of_transformers(max_position_embeddings=-1), False),
        (of_transformers(max_position_embeddings=64, rope_scaling=YARN), False),
    ],
    ids=["unknown", "TransformerLens", "transformers", "no end", "scaled"],
)
def test_a_context_is_no_longer_than_the_positions_of_the_model(
    model: Any, is_refused: bool
) -> None:
    require_context(model, 64)
    refused = pytest.raises(ValueError, match="context_size=65 is not possible")
    with refused if is_refused else nullcontext():
        require_context(model, 65)


def test_a_run_that_diverges_is_one_sentence_and_leaves_no_sae(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert train(lr="1e30") == 1
    assert "training diverged: after" in caplog.text
    assert "Take a lower lr than 1e+30" in caplog.text
    assert "no optimizer of torch" not in caplog.text
    assert not (tmp_path / "run" / "cfg.json").exists()
    assert train(lr="inf") == 1
    assert "lr=inf is not possible: it must be above 0, and finite" in caplog.text


@pytest.mark.filterwarnings("ignore:HookedTransformer.from_pretrained is deprecated")
def test_a_model_that_nobody_knows_is_one_sentence(
    train: Train, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(models, "load_model", load_model)
    assert train(model_name="nobody/nothing") == 1
    said = caplog.records[-1].getMessage()
    assert "model_name='nobody/nothing' is no model" in said
    assert len(said) < 300


def test_without_a_login_wandb_is_asked_for_before_any_work(
    train: Train, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr("wandb.api", type("Api", (), {"api_key": None}))
    assert train(log_to_wandb="true") == 1
    assert "'wandb login', set WANDB_MODE=offline, or pass --log_to_wandb false" in caplog.text


def test_other_architectures_have_their_own_flags_and_the_same_life(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**TRAIN_FLAGS, "dataset_path": str(tmp_path / "texts")}
    of_gba = ("target-l0", "n_groups", "highest_target_frequency", "calibration_samples")
    arguments = [
        part for name, value in settings.items() if name not in of_gba
        for part in (f"--{name}", value)
    ]  # fmt: skip
    topk = ["train", "--architecture", "topk", "--k", "4", *arguments, "--output_path",
            str(tmp_path / "topk")]  # fmt: skip
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        with pytest.raises(SystemExit):
            main(topk)
    checkpoint = tmp_path / "topk" / "resume" / str(5 * 64)
    saved = load_file(checkpoint / "sae_weights.safetensors")["W_dec"]
    begun = first_decoders(monkeypatch)
    assert main([*topk, "--resume"]) == 0
    assert torch.equal(begun[-1], saved)
    assert type(SAE.load_from_disk(tmp_path / "topk")).__name__ == "TopKSAE"


def test_the_bar_says_where_training_is(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train() == 0
    line = [t for t in capsys.readouterr().err.split("\r") if "expl. var." in t][-1]
    assert "100%" in line
    assert "1.54k/1.54k" in line
    assert " (falling to 4), expl. var. " in line


def test_the_width_at_a_hook_point(tiny_bridge: Any, tiny_hooked_transformer: Any) -> None:
    for model in (tiny_bridge, tiny_hooked_transformer):
        assert training.width_at(model, HOOK) == D_MODEL
        assert training.width_at(model, "blocks.0.attn.hook_z") == D_MODEL
        assert training.width_at(model, "blocks.0.attn.hook_z", head=1) == D_MODEL // 4
        assert training.width_at(model, "blocks.0.mlp.hook_post") == 32
        with pytest.raises(ValueError, match=r"hook_head_index=4 .* has heads 0 to 3"):
            training.width_at(model, "blocks.0.attn.hook_z", head=4)
        with pytest.raises(ValueError, match=r"hook_head_index=1 .* of no single heads"):
            training.width_at(model, HOOK, head=1)


def test_fine_tuning_is_of_the_sae_that_was_asked_for(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert train() == 0
    start, run = tmp_path / "start", tmp_path / "run"
    again = {"output_path": str(tmp_path / "again")}
    assert train(from_pretrained_path=str(run), **again) == 1  # SAELens would train a jumprelu SAE
    assert "has architecture='jumprelu', and keeps it" in caplog.text
    to_training_sae(run, target_l0=5.0).save_model(start)
    assert train(from_pretrained_path=str(start), **again) == 1
    assert "has target_l0=5.0, and keeps it: give that instead of 4.0" in caplog.text
    same = {"from_pretrained_path": str(start), "output_path": f"{run}/../start"}
    assert train("--overwrite", **same, **{"target-l0": "5"}) == 1
    assert "which this run would replace" in caplog.text
    five = {"target-l0": "5"}
    assert train("--tied", from_pretrained_path=str(start), **again, **five) == 1
    assert "has tied=False, and keeps it: give that instead of True" in caplog.text
    assert train(from_pretrained_path=str(start), **again, **five) == 0
    l0 = SAE.load_from_disk(tmp_path / "again").cfg.metadata.l0
    assert l0 == pytest.approx(5.0, rel=0.02)
    trained = json.loads((tmp_path / "again" / "runner_cfg.json").read_text())["sae"]
    assert trained["l0_warm_up_steps"] == 0  # the SAE's own setting, not the command's
    elsewhere = {"from_pretrained_path": str(start), "hook_name": "blocks.0.mlp.hook_post"}
    assert train("--overwrite", **elsewhere, **again, **five) == 1
    assert "has d_in=16, and activations at blocks.0.mlp.hook_post" in caplog.text


def test_what_json_does_not_have_is_written_as_it_has_it(
    tmp_path: Path, tiny_hooked_transformer: Any, tiny_texts: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    sae = tiny_config(d_in=np.int64(D_MODEL), target_l0=np.float32(3))
    asked: list[Any] = []

    def load_model(*_: Any, model_from_pretrained_kwargs: Any, **__: Any) -> Any:
        asked.append(model_from_pretrained_kwargs)
        return tiny_hooked_transformer

    monkeypatch.setattr(models, "load_model", load_model)
    given: dict[str, Any] = {"dtype": torch.bfloat16}
    cfg = language_model_config(
        tmp_path / "run", sae=sae, model_from_pretrained_kwargs=given, lr=np.float32(1e-2)
    )
    cfg.output_path = tmp_path / "run"  # type: ignore[assignment]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 9)
        with pytest.raises(SystemExit):
            training.train(cfg, dataset=tiny_texts)
    cfg.model_from_pretrained_kwargs = given
    training.train(cfg, dataset=tiny_texts, resume=True)
    assert asked == 2 * [{"dtype": torch.bfloat16}]  # as it was given
    written = json.loads((tmp_path / "run" / "runner_cfg.json").read_text())
    assert written["model_from_pretrained_kwargs"] == {"dtype": "bfloat16"}
    kwargs = load(tmp_path / "run").sae.cfg.metadata.model_from_pretrained_kwargs
    assert kwargs == {"dtype": "bfloat16"}
    cfg.model_from_pretrained_kwargs = {"device_map": {1, 2}}
    with pytest.raises(ValueError, match=r"model_from_pretrained_kwargs=.* written as JSON"):
        training.train(cfg, model=tiny_hooked_transformer, dataset=tiny_texts, overwrite=True)


def test_a_dataset_that_saelens_does_not_read_is_refused(
    train: Train, tmp_path: Path, tiny_texts: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_texts.save_to_disk(tmp_path / "saved")
    assert train(dataset_path=str(tmp_path / "saved")) == 1
    assert "was written by save_to_disk, which SAELens does not read" in caplog.text


@pytest.mark.skipif(
    int(datasets.__version__.split(".")[0]) < 4, reason="runs scripts, if it is allowed to"
)
def test_a_dataset_that_is_a_script_is_refused(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scripted = tmp_path / "scripted"
    scripted.mkdir()
    (scripted / "scripted.py").touch()
    assert train(dataset_path=str(scripted)) == 1
    assert "is a script, which datasets no longer runs" in caplog.text
    with pytest.raises(FileNotFoundError, match="scripted can't be loaded"):
        load_text(str(scripted))


def test_a_full_disk_at_the_end_loses_only_what_came_after_the_last_checkpoint(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(GBATrainingSAE, "save_inference_model", full)
        assert train(checkpoint_minutes="1e-9") == 1
    assert "could not be written, there is no room: free some space" in caplog.text
    assert train("--resume") == 0
    assert f"going on from {tmp_path / 'run' / 'resume'}" in caplog.text


def test_an_sae_in_a_folder_below_is_not_the_end_of_a_run(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    GBATrainingSAE(tiny_config()).save_inference_model(tmp_path / "run" / "other")
    assert train("--resume") == 1
    assert "holds an SAE: name another folder" in caplog.text


def test_a_signal_after_the_last_step_leaves_a_run_that_has_ended(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 24, signal.SIGTERM)
        with pytest.raises(SystemExit):
            train(checkpoint_minutes="1e-9")
    assert "nothing is lost" in caplog.text
    assert not (tmp_path / "run" / "resume").exists()
    assert train("--resume") == 0
    assert "has ended" in caplog.text


def test_a_flag_without_its_value_is_no_none(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [part for n, v in TRAIN_FLAGS.items() if n != "target-l0" for part in (f"--{n}", v)]
    with pytest.raises(SystemExit):
        main(["train", "--dataset_path", "d", "--target-l0", *given])  # of an empty variable
    assert "expected one argument" in capsys.readouterr().err


def test_a_schedule_that_falls_to_zero_by_itself_gets_no_decay(train: Train) -> None:
    assert train(lr_scheduler_name="cosineannealing", lr_end="0") == 0


def test_texts_may_be_given_beside_the_file_that_they_are_of(
    tmp_path: Path, tiny_hooked_transformer: Any, tiny_texts: Dataset
) -> None:
    (tmp_path / "corpus.txt").write_text("w1 w2")
    sae = tiny_config(d_in=D_MODEL)
    path = str(tmp_path / "corpus.txt")
    cfg = language_model_config(tmp_path / "run", sae=sae, dataset_path=path)
    training.train(cfg, model=tiny_hooked_transformer, dataset=tiny_texts)
    assert load(tmp_path / "run").sae.cfg.metadata.dataset_path == cfg.dataset_path


@pytest.mark.parametrize("by_train", [True, False])
def test_prefetched_data_begin_anew_in_a_script_and_it_is_said(
    by_train: bool, tmp_path: Path, tiny_hooked_transformer: Any, tiny_texts: Dataset,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def run(resume: bool) -> None:
        cfg = language_model_config(
            tmp_path / "run", sae=tiny_config(d_in=D_MODEL), prefetch_llm_batches=1,
            n_batches_in_buffer=8,
        )  # fmt: skip
        given = tiny_hooked_transformer, tiny_texts
        if by_train:
            training.train(cfg, model=given[0], dataset=given[1], resume=resume)
            return
        with resumable_run(tmp_path / "run", resume=resume):
            LanguageModelSAETrainingRunner(cfg, given[1], given[0]).run()

    with monkeypatch.context() as patch:
        interrupt_at(patch, 15)
        with pytest.raises(SystemExit):
            run(resume=False)
    run(resume=True)
    assert ("the data begin anew" in caplog.text) != by_train
