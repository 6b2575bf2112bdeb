"""A run that was interrupted and goes on, beside one that was not, by every runner of SAELens."""

import json
import os
import random
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from threading import Barrier, Thread
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from datasets import Dataset
from sae_lens import LoggingConfig, TopKTrainingSAEConfig
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunner, MultiSAETrainingRunnerConfig
from sae_lens.synthetic import SyntheticModelConfig, SyntheticSAERunner
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_gba import GBATrainingSAE, resumable_run
from sae_lens_gba.checksums import check_checksums, has_checksums, write_checksums
from sae_lens_gba.errors import DataEndedError, RunFolderError
from sae_lens_gba.runs.checkpoints import Checkpoints, newest_whole
from sae_lens_gba.runs.folder import has_ended, remove_checkpoints
from sae_lens_gba.runs.interruption import TrainingInterrupted
from tests.runs.interrupting import interrupt_at
from tests.toolbox import (
    D_MODEL,
    make_trainer,
    mixture,
    synthetic_runner_config,
    take_steps,
    tiny_config,
)

STEPS, BATCH = 24, 64


def trainer(
    mode: str = "none",
    steps: int = STEPS,
    data: Iterator[torch.Tensor] | None = None,
    **settings: Any,
) -> SAETrainer[Any, Any]:
    torch.manual_seed(0)
    sae = GBATrainingSAE(tiny_config(normalize_activations=mode, calibration_samples=1024))
    return make_trainer(sae, steps, mixture(1, BATCH) if data is None else data, BATCH, **settings)


def noisy() -> Iterator[torch.Tensor]:
    """Batches with noise from every global generator."""
    for batch in mixture(1, BATCH):
        drawn = [random.random(), np.random.rand(), float(torch.rand(()))]  # noqa: NPY002
        yield batch + sum(drawn)


def seed_generators() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002


def assert_equal(a: torch.nn.Module, b: torch.nn.Module) -> None:
    for name, value in a.state_dict().items():
        assert torch.equal(b.state_dict()[name], value), name


@pytest.mark.parametrize("mode", ["none", "expected_average_only_in", "covariance_whitening"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_goes_on_bit_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, number: signal.Signals,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    seed_generators()
    whole = trainer(mode, data=noisy()).fit()
    whole.save_inference_model(tmp_path / "whole")
    seed_generators()  # not before it goes on: a new process has another state
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run = tmp_path / "run"
    for step in (7, 16):  # interrupted twice
        interrupt_at(monkeypatch, step, number)
        with pytest.raises(TrainingInterrupted) as stopped, resumable_run(run, resume=True):
            trainer(mode, data=noisy()).fit()
        monkeypatch.undo()
        assert stopped.value.code == 128 + number
        assert stopped.value.checkpoint == run / "resume" / str(step * BATCH)
        assert f"interrupted after {step} steps; saved in {stopped.value.checkpoint}" in caplog.text
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    with resumable_run(run, resume=True):
        resumed = trainer(mode, data=noisy()).fit()
    resumed.save_inference_model(tmp_path / "resumed")
    assert_equal(whole, resumed)  # also its counters
    for name in ("sae_weights.safetensors", "gba_groups.safetensors"):  # also its calibration
        files = [(tmp_path / folder / name).read_bytes() for folder in ("whole", "resumed")]
        assert files[0] == files[1], name


def test_a_run_of_a_folded_sae_goes_on_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def folded() -> SAETrainer[Any, Any]:
        sae = trainer().sae
        sae.fold_W_dec_norm()  # its encoder is a parameter of its own
        return make_trainer(sae, STEPS, mixture(1, BATCH), BATCH)

    whole = folded().fit()
    for name, begun, other in (("folded", folded, trainer), ("not folded", trainer, folded)):
        interrupt_at(monkeypatch, 7)
        with pytest.raises(TrainingInterrupted), resumable_run(tmp_path / name):
            begun().fit()
        monkeypatch.undo()
        with (
            pytest.raises(RunFolderError, match="folded"),
            resumable_run(tmp_path / name, resume=True),
        ):
            other().fit()
    with resumable_run(tmp_path / "folded", resume=True):
        assert_equal(whole, folded().fit())


def synthetic(output: Path) -> SyntheticSAERunner[Any]:
    torch.manual_seed(0)
    cfg = synthetic_runner_config(tiny_config(calibration_samples=1024), STEPS, BATCH, output)
    return SyntheticSAERunner(cfg)


def test_the_synthetic_runner_goes_on_bit_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = synthetic(tmp_path / "whole").run().sae
    run = tmp_path / "run"
    interrupt_at(monkeypatch, 10)
    with pytest.raises(TrainingInterrupted), resumable_run(run):
        synthetic(run).run()
    monkeypatch.undo()
    other = synthetic(run)
    assert isinstance(other.cfg.synthetic_model, SyntheticModelConfig)
    other.cfg.synthetic_model.seed = 7
    with (
        pytest.raises(RunFolderError, match="synthetic_model="),
        resumable_run(run, resume=True),
    ):
        other.run()
    with resumable_run(run, resume=True) as resume_from:
        resumed = synthetic(run).run().sae
    assert resume_from == run / "resume" / str(10 * BATCH)
    assert_equal(whole, resumed)


def test_several_saes_on_one_model_go_on(
    tmp_path: Path, tiny_texts: Dataset, tiny_hooked_transformer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    hook = "blocks.0.hook_resid_post"

    def run(context_size: int = 16) -> dict[str, Any]:
        topk = TopKTrainingSAEConfig(D_MODEL, 64, k=4)
        cfg = MultiSAETrainingRunnerConfig(
            saes={"gba": tiny_config(d_in=D_MODEL), "topk": topk},
            hook_names=hook, output_path=str(tmp_path), model_name="tiny/random",
            model_from_pretrained_kwargs={}, dataset_path="tiny/texts", streaming=False,
            context_size=context_size, training_tokens=STEPS * BATCH, train_batch_size_tokens=BATCH,
            store_batch_size_prompts=4, n_batches_in_buffer=16, checkpoint_path=None,
            logger=LoggingConfig(log_to_wandb=False),
        )  # fmt: skip
        saes: dict[str, Any] = MultiSAETrainingRunner(
            cfg, override_model=tiny_hooked_transformer, override_dataset=tiny_texts
        ).run()
        return saes

    with monkeypatch.context() as patch:
        interrupt_at(patch, 8)
        with pytest.raises(TrainingInterrupted) as stopped, resumable_run(tmp_path):
            run()
    checkpoint = stopped.value.checkpoint
    assert checkpoint is not None
    assert {p.name for p in checkpoint.iterdir() if p.is_dir()} == {"gba", "topk"}
    with (
        pytest.raises(RunFolderError, match="context_size=8 differs from 16"),
        resumable_run(tmp_path, resume=True),
    ):
        run(context_size=8)
    seen = Mock(side_effect=tiny_hooked_transformer.run_with_cache)
    monkeypatch.setattr(tiny_hooked_transformer, "run_with_cache", seen)
    with resumable_run(tmp_path, resume=True):
        saes = run()
    whole_run = STEPS * BATCH // (4 * 16)  # batches of texts that 24 steps take
    assert seen.call_count < whole_run  # the model does not read again what it has read
    assert int(saes["gba"].adapter.n_steps) == STEPS
    assert saes["gba"].stock_metadata().to_dict()["gba"]["l0"]["measured"] == pytest.approx(
        4.0, rel=0.02
    )


def test_checkpoints_are_written_in_time_and_two_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = trainer()
    # a step takes three minutes
    monkeypatch.setattr(
        "sae_lens_gba.runs.resumable.monotonic", lambda: 180.0 * fitted.n_training_steps
    )
    saved: list[int] = []
    save = Checkpoints.save

    def save_and_tell(checkpoints: Checkpoints, trainer: Any) -> Path:
        saved.append(trainer.n_training_steps)
        return save(checkpoints, trainer)

    monkeypatch.setattr(Checkpoints, "save", save_and_tell)
    with resumable_run(tmp_path, checkpoint_minutes=5):
        fitted.fit()
    assert saved == list(range(2, STEPS, 2))
    kept = sorted(int(p.name) for p in (tmp_path / "resume").iterdir())
    assert kept == [step * BATCH for step in saved[-2:]]
    newest = newest_whole(tmp_path / "resume")
    assert newest is not None
    assert newest.name == str(kept[-1])
    (newest / "trainer_state.pt").write_bytes(b"half")
    older = newest_whole(tmp_path / "resume")
    assert older is not None
    assert older.name == str(kept[0])


def test_without_minutes_nothing_is_saved_in_time(tmp_path: Path) -> None:
    with resumable_run(tmp_path, checkpoint_minutes=0):
        trainer(steps=3).fit()
    assert not (tmp_path / "resume").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_stops_at_once_and_a_second_sigterm_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    interrupt_at(monkeypatch, 3, number, times=2)
    with pytest.raises(TrainingInterrupted) as stopped, resumable_run(tmp_path):
        trainer().fit()
    saved = None if number == signal.SIGINT else tmp_path / "resume" / str(3 * BATCH)
    assert stopped.value.checkpoint == saved


def test_damaged_checkpoints_do_not_cost_the_ones_of_a_run_begun_anew(tmp_path: Path) -> None:
    with resumable_run(tmp_path, checkpoint_minutes=1e-9):
        trainer().fit()
    damaged = list((tmp_path / "resume").iterdir())
    for path in damaged:
        (path / "trainer_state.pt").write_bytes(b"half")
    with resumable_run(tmp_path, resume=True, checkpoint_minutes=1e-9):
        trainer(steps=3).fit()
    newest = newest_whole(tmp_path / "resume")
    assert newest is not None
    assert newest.name == str(2 * BATCH)  # before the last step
    with resumable_run(tmp_path, resume=True, checkpoint_minutes=1e-9):
        trainer().fit()
    newest = newest_whole(tmp_path / "resume")
    assert newest is not None
    assert newest.name == str((STEPS - 1) * BATCH)  # in the place of a damaged one


def test_a_checkpoint_is_removed_whole_even_by_a_process_that_is_killed_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(folder: Path, **_: Any) -> None:
        if any(folder.glob("*")):
            next(folder.iterdir()).unlink()
            raise Killed

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(Killed), resumable_run(tmp_path, checkpoint_minutes=1e-9):
        trainer().fit()
    left = [path for path in (tmp_path / "resume").iterdir() if path.name.isdigit()]
    assert len(left) == 2
    for path in left:
        assert has_checksums(path)
        check_checksums(path)


def test_a_full_disk_does_not_end_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sae_lens_gba.runs.checkpoints.torch.save", full)
    with resumable_run(tmp_path, checkpoint_minutes=1e-9):
        trainer(steps=3).fit()
    assert "no checkpoint this time" in caplog.text
    assert "free some space" in caplog.text
    assert list((tmp_path / "resume").iterdir()) == []


def test_data_that_end_early_lose_no_step(tmp_path: Path) -> None:
    def run(n_batches: int) -> Any:
        torch.manual_seed(0)
        sae = GBATrainingSAE(tiny_config(calibration_samples=1024))
        return make_trainer(sae, STEPS, islice(mixture(1, BATCH), n_batches), BATCH).fit()

    with pytest.raises(DataEndedError) as ended, resumable_run(tmp_path):
        run(10)
    checkpoint = tmp_path / "resume" / str(10 * BATCH)
    assert f"after {10 * BATCH} of {STEPS * BATCH} training samples" in str(ended.value)
    assert f"saved in {checkpoint}" in str(ended.value)
    with resumable_run(tmp_path, resume=True) as resume_from:
        assert resume_from == checkpoint
        resumed = run(STEPS)
    assert_equal(trainer().fit(), resumed)
    with pytest.raises(DataEndedError, match="after 0 of"), resumable_run(tmp_path / "empty"):
        run(0)


def test_saelens_own_checkpoints_are_not_written_again(tmp_path: Path) -> None:
    own: dict[str, Any] = {"n_checkpoints": 5, "checkpoint_path": str(tmp_path / "own")}
    interrupting = pytest.MonkeyPatch()
    interrupt_at(interrupting, 13)
    with pytest.raises(TrainingInterrupted), resumable_run(tmp_path / "run"):
        trainer(**own).fit()
    interrupting.undo()
    before = {p.name for p in (tmp_path / "own").iterdir()}
    with resumable_run(tmp_path / "run", resume=True):
        trainer(**own).fit()
    after = sorted(int(p.name) for p in (tmp_path / "own").iterdir())
    assert len(before) == 3
    assert after == [BATCH * step for step in (5, 9, 13, 17, 21)]


def test_other_settings_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(monkeypatch, 3)
    with pytest.raises(TrainingInterrupted), resumable_run(tmp_path):
        trainer().fit()
    monkeypatch.undo()
    with (
        pytest.raises(RunFolderError, match=r"trainer's lr=0.5 differs from 0.001"),
        resumable_run(tmp_path, resume=True),
    ):
        trainer(lr=0.5).fit()
    sae = GBATrainingSAE(tiny_config(target_l0=8.0, calibration_samples=1024))
    with (
        pytest.raises(RunFolderError, match=r"SAE's target_l0=8.0 differs from 4.0"),
        resumable_run(tmp_path, resume=True),
    ):
        make_trainer(sae, STEPS, mixture(1, BATCH), BATCH).fit()
    # what follows the run's length ends with it
    for decay_steps, refused in ((6, True), (0, False)):
        folder = tmp_path / f"decays_{refused}"
        interrupt_at(monkeypatch, 3)
        with pytest.raises(TrainingInterrupted), resumable_run(folder):
            trainer(lr_decay_steps=decay_steps).fit()
        monkeypatch.undo()
        message = f"total_training_samples={2 * STEPS * BATCH} differs from {STEPS * BATCH}"
        expected = pytest.raises(RunFolderError, match=message) if refused else nullcontext()
        with expected, resumable_run(folder, resume=True):
            # the command derives this from the length, which is what it is to name
            trainer(steps=2 * STEPS, lr_decay_steps=decay_steps * (1 + refused)).fit()
    # what is done after training may be decided during it
    sae = GBATrainingSAE(tiny_config(calibrate_for="groups", calibration_samples=1024))
    with resumable_run(tmp_path, resume=True):
        make_trainer(sae, STEPS, mixture(1, BATCH), BATCH).fit()


def test_a_folder_is_one_runs_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        resumable_run(tmp_path / "held"),
        pytest.raises(RunFolderError, match="another process trains into"),
        resumable_run(tmp_path / "held"),
    ):
        pass
    interrupt_at(monkeypatch, 3)
    with pytest.raises(TrainingInterrupted), resumable_run(tmp_path / "begun"):
        trainer().fit()
    monkeypatch.undo()
    GBATrainingSAE(tiny_config()).save_inference_model(tmp_path / "ended")
    for name in ("begun", "ended"):
        with pytest.raises(RunFolderError, match="overwrite"), resumable_run(tmp_path / name):
            pass
        with resumable_run(tmp_path / name, overwrite=True) as resume_from:
            assert resume_from is None
            assert len(list((tmp_path / name).iterdir())) > 1  # until the first step
            trainer().fit()
            assert [p.name for p in (tmp_path / name).iterdir()] == [".lock"]


@pytest.mark.parametrize("earlier", ["begun", "ended"])
def test_a_run_that_was_to_replace_another_and_never_began_is_begun_by_resuming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: str
) -> None:
    if earlier == "begun":
        interrupt_at(monkeypatch, 3)
        with pytest.raises(TrainingInterrupted), resumable_run(tmp_path):
            trainer().fit()
        monkeypatch.undo()
    else:
        GBATrainingSAE(tiny_config()).save_inference_model(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="impossible"), resumable_run(tmp_path, overwrite=True):
        raise ValueError("impossible")
    with resumable_run(tmp_path, overwrite=True):
        pass
    assert {path.name for path in tmp_path.iterdir()} == left  # as if it had not been tried
    with pytest.raises(SystemExit), resumable_run(tmp_path, overwrite=True):
        raise SystemExit(143)
    assert not has_ended(tmp_path)
    with pytest.raises(RunFolderError, match="overwrite"), resumable_run(tmp_path):
        pass
    with resumable_run(tmp_path, resume=True) as resume_from:
        assert resume_from is None
        trainer().fit()
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_run_in_a_folder_that_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), resumable_run(tmp_path / "file" / "run"):
        pass


def test_before_the_first_step_a_signal_ends_the_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def data() -> Iterator[torch.Tensor]:
        os.kill(os.getpid(), signal.SIGTERM)
        yield from mixture(1)

    torch.manual_seed(0)
    sae = GBATrainingSAE(tiny_config(normalize_activations="expected_average_only_in"))
    with pytest.raises(TrainingInterrupted) as stopped, resumable_run(tmp_path):
        make_trainer(sae, 3, data()).fit()
    assert stopped.value.code == 143
    assert stopped.value.checkpoint is None
    with resumable_run(tmp_path, resume=True) as resume_from:  # there is nothing yet: it begins
        assert resume_from is None


def test_a_learning_rate_of_numpy_is_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (rate,) = np.geomspace(1e-3, 1e-3, 1)
    interrupt_at(monkeypatch, 7)
    with pytest.raises(TrainingInterrupted), resumable_run(tmp_path):
        trainer(lr=rate).fit()
    monkeypatch.undo()
    with resumable_run(tmp_path, resume=True):
        resumed = trainer(lr=rate).fit()
    assert_equal(trainer(lr=1e-3).fit(), resumed)


def test_settings_that_another_version_added_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at(monkeypatch, 7)
    with pytest.raises(TrainingInterrupted) as stopped, resumable_run(tmp_path):
        trainer().fit()
    monkeypatch.undo()
    checkpoint = stopped.value.checkpoint
    assert checkpoint is not None
    state = torch.load(checkpoint / "run_state.pt")
    del state["start"]["settings"]["n_batches_for_norm_estimate"]
    torch.save(state, checkpoint / "run_state.pt")
    cfg = json.loads((checkpoint / "cfg.json").read_text())
    del cfg["error_exponent"]
    (checkpoint / "cfg.json").write_text(json.dumps(cfg))
    write_checksums(checkpoint)
    with resumable_run(tmp_path, resume=True) as resume_from:
        resumed = trainer().fit()
    assert resume_from == checkpoint
    assert_equal(trainer().fit(), resumed)


def test_steps_made_on_other_data_before_are_not_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = trainer()  # with whose state the run begins, as by `resume_from_checkpoint`
    take_steps(before, 10)
    before.save_checkpoint("before", base_path=tmp_path)

    def begun() -> SAETrainer[Any, Any]:
        after = trainer()
        after.load_trainer_state(tmp_path / "before")
        after.sae.load_weights_from_checkpoint(tmp_path / "before")
        return after

    whole = begun().fit()
    interrupt_at(monkeypatch, 17)
    with pytest.raises(TrainingInterrupted), resumable_run(tmp_path / "run"):
        begun().fit()
    monkeypatch.undo()
    with resumable_run(tmp_path / "run", resume=True):
        assert_equal(whole, begun().fit())


def test_after_the_block_a_trainer_is_as_saelens_made_it(tmp_path: Path) -> None:
    once = trainer()
    names = set(vars(once))
    with resumable_run(tmp_path, checkpoint_minutes=1e-9):
        once.fit()
    assert set(vars(once)) == names
    remove_checkpoints(tmp_path)
    once.fit()
    assert not (tmp_path / "resume").exists()


def test_blocks_of_several_threads_may_overlap(tmp_path: Path) -> None:
    fit = SAETrainer.fit
    both_are_in, ended = Barrier(2, timeout=60), []

    def run(name: str) -> None:
        with resumable_run(tmp_path / name, checkpoint_minutes=1e-9):
            both_are_in.wait()
            ended.append(trainer().fit())
            both_are_in.wait()

    threads = [Thread(target=run, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(ended) == 2
    for name in "ab":
        assert newest_whole(tmp_path / name / "resume") is not None
    assert SAETrainer.fit is fit
