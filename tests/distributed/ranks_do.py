"""What ranks are told to do in tests; imported once, by the process that they are forked from."""

import os
import signal
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import sae_lens.llm_sae_training_runner
import sae_lens.training.activations_store
import torch
import wandb
from sae_lens import TrainingSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file

import sae_lens_gba.distributed.batches as batches_module
import sae_lens_gba.distributed.trainer as trainer_module
from sae_lens_gba import GBATrainingSAE, cli
from sae_lens_gba.distributed import LatentParallelTrainer, LatentSlice, Ranks, join
from sae_lens_gba.distributed.runner import train_synthetic_sae
from sae_lens_gba.provenance import package_versions
from sae_lens_gba.runs import models
from sae_lens_gba.training_metrics import Curves, training_metrics
from sae_lens_gba_command import main
from tests.toolbox import (
    hooked_transformer,
    make_trainer,
    mixture,
    pairs,
    random_texts,
    synthetic_runner_config,
    take_steps,
    tiny_config,
    tiny_sae,
)

BATCH = 64


def samples(seed: int = 1, architecture: str = "gba") -> Iterator[torch.Tensor]:
    draw = mixture if architecture == "gba" else pairs
    return (batch.double() for batch in draw(seed, batch=BATCH))


def part_of(batches: Iterator[torch.Tensor], ranks: Ranks, uneven: bool = False) -> Any:
    """This rank's rows of each."""
    first = BATCH // 2 + 13 * uneven
    sizes = [first, *([0] * (ranks.world - 1))]
    for r in range(1, ranks.world):
        sizes[r] = (BATCH - sum(sizes)) // (ranks.world - r)
    for batch in batches:
        yield batch.split(sizes)[ranks.rank]


def whole_sae(**settings: Any) -> GBATrainingSAE:
    torch.manual_seed(3)
    return tiny_sae(**{"dtype": "float64", **settings})


def falling_sae() -> GBATrainingSAE:
    """Whose latents no number of ranks divides, and whose targets fall when it is stopped."""
    return whole_sae(d_sae=61, l0_warm_up_steps=20)


def trainer_config(steps: int, **settings: Any) -> SAETrainerConfig:
    defaults = {"lr": 3e-3, "lr_end": 3e-3, "n_batches_for_norm_estimate": 4}
    return SAETrainerConfig(
        total_training_samples=steps * BATCH,
        train_batch_size_samples=BATCH,
        **{**defaults, **settings},
    )


def trainer_on(
    ranks: Ranks,
    sae: GBATrainingSAE | None,
    steps: int,
    skip: int = 0,
    uneven: bool = False,
    **settings: Any,
) -> LatentParallelTrainer:
    own = LatentSlice.of(sae if ranks.rank == 0 else None, ranks)
    of = "gba" if sae is None else sae.cfg.architecture()
    data = part_of(islice(samples(architecture=of), skip, None), ranks, uneven)
    return LatentParallelTrainer(trainer_config(steps, **settings), own, data)


def largest_differences(one: GBATrainingSAE, other: GBATrainingSAE) -> dict[str, float]:
    theirs = other.state_dict()
    return {
        name: float((value.double() - theirs[name].double()).abs().max())
        for name, value in one.state_dict().items()
    }


def what_is_said(trainer: Any, output: Any) -> dict[str, float]:
    """To wandb and in the metadata: numbers about all latents."""
    metrics = training_metrics(trainer.sae.adapter, trainer.sae.bias, Curves())
    log = trainer.build_train_step_log_dict(output, trainer.n_training_samples)
    trainer.set_final_sae_metadata()
    metadata = trainer.sae.cfg.metadata
    values = trainer.sae.log_histograms()
    return {
        **{name: float(metric()) for name, metric in metrics.items()},
        **log,
        **{f"sum of {name}": float(value.sum()) for name, value in values.items()},
        "l0": metadata.l0,
        "num_dead_features": metadata.num_dead_features,
        "below_1e-5": float((trainer.feature_sparsity < 1e-5).sum()),
    }


def train_beside_one_process(
    rank: int, cases: dict[str, tuple[dict[str, Any], dict[str, Any]]]
) -> dict[str, Any]:
    """For each case, how far apart ranks and one process end: weights, counters, what is shared."""
    found = {}
    with join() as ranks:
        for name, (settings, special) in cases.items():
            steps = special.get("steps", 62)  # stops between two adaptations: counters are not 0
            together = trainer_on(
                ranks, whole_sae(**settings), steps, uneven=special.get("uneven", False)
            )
            if "dense_ranks" in special:
                dense = rank in special["dense_ranks"]
                together.sae.cfg.sparse_below_density = 0.0 if dense else 1.0
            if special.get("rounds_otherwise") and rank == 1:  # as other kernels would
                for parameter in together.sae.shared():
                    parameter.register_hook(lambda gradient: gradient * (1 + 1e-6))
            output = take_steps(together, steps)
            said = what_is_said(together, output)
            sae = together.sae
            state = [together.optimizer.state.get(p, {}) for p in sae.shared()]
            adam = [values[name] for values in state for name in sorted(values)]
            shared = [*(p.detach() for p in sae.shared()), sae.adapter.input_norm, *adam]
            everyones = ranks.everyones([t.clone() for t in shared])
            same = all(torch.equal(a, b) for t in everyones for a, b in zip(t, shared, strict=True))
            whole = sae.whole()
            end = together.sae.eval().whole()  # calibrated
            if whole is not None and end is not None:
                alone = whole_sae(**settings)
                data = samples(architecture=alone.cfg.architecture())
                one = make_trainer(alone, steps, data, BATCH, lr=3e-3, lr_end=3e-3)
                output = take_steps(one, steps)
                found[name] = {
                    "shared is bit-equal": same,
                    "said": (said, what_is_said(one, output)),
                    "trained": largest_differences(one.sae, whole),
                    "calibrated": largest_differences(one.sae.eval(), end),
                    "l0": (one.sae._calibration.l0, end._calibration.l0),
                }
    return found


def checkpoint_and_go_on(rank: int, folder: Path, stop_at: int, steps: int) -> dict[str, Any]:
    """Trains, with a checkpoint on the way; the end, and what the stock SAE of it reconstructs."""
    with join() as ranks:
        trainer = trainer_on(ranks, falling_sae(), steps)
        take_steps(trainer, stop_at)
        trainer.save_checkpoint("stopped", folder)
        trainer.checkpoint_every(0, folder / "resume")
        trainer._save_to_resume()
        take_steps(trainer, steps - stop_at)
        end = end_of(trainer)
        sae = trainer.sae
        sae.save_inference_model(folder / "stock")
        x = next(samples(seed=8))
        with torch.no_grad():
            end["reconstruction"] = sae.decode(sae.encode(x))
    return end


def go_on(rank: int, checkpoint: Path, stop_at: int, steps: int) -> dict[str, Any]:
    """Trains on from a checkpoint, whoever wrote it."""
    with join() as ranks:
        torch.manual_seed(100 + rank)  # nothing may depend on it
        trainer = trainer_on(ranks, GBATrainingSAE(falling_sae().cfg), steps, skip=stop_at)
        trainer.load_trainer_state(checkpoint)
        trainer.sae.load_weights_from_checkpoint(checkpoint)
        take_steps(trainer, steps - stop_at)
        return end_of(trainer)


def n_steps_of(checkpoint: Path) -> int:
    sae: Any = TrainingSAE.load_from_disk(checkpoint)
    assert isinstance(sae, GBATrainingSAE) and not isinstance(sae, LatentSlice)
    return int(sae.adapter.n_steps)


def end_of(trainer: LatentParallelTrainer) -> dict[str, Any]:
    """State of the whole and counters of its trainer; empty but on rank 0."""
    whole = trainer.whole()
    if whole is None:
        return {}
    adam = whole.optimizer.state_dict()["state"]
    return {
        **whole.sae.state_dict(),
        **{f"adam.{i}.{name}": value for i, state in adam.items() for name, value in state.items()},
        "act_freq_scores": whole.act_freq_scores,
        "since_fired": whole.n_forward_passes_since_fired,
        "recent samples": torch.cat([*trainer.sae.recent_samples.batches]),
        "steps": torch.tensor([whole.n_training_steps, whole.n_training_samples]),
    }


def fail(rank: int, how: str, folder: Path, silence_s: float) -> None:
    """Trains until rank 1 fails in this way, after a checkpoint; ends as the command line does."""
    raise SystemExit(
        cli._report_failure(partial(_train_until_failure, rank, how, folder, silence_s))
    )


def _train_until_failure(rank: int, how: str, folder: Path, silence_s: float) -> None:
    is_it = rank == (0 if how == "first is killed" else 1)
    batches_module._CHECK_EVERY = 5
    if how == "versions" and is_it:
        versions = package_versions()
        vars(trainer_module)["package_versions"] = lambda: {**versions, "torch": "1.0"}
    with join(silence_s=silence_s) as ranks:
        trainer = trainer_on(ranks, whole_sae(), 1000, checkpoint_path=str(folder / how))
        take_steps(trainer, 10)
        trainer.save_checkpoint("before", folder / how)
        if how == "killed while saving":
            # the weights are written, the optimizer's state is not
            SAETrainer.save_trainer_state = _be_killed  # type: ignore[method-assign, assignment]
            trainer.save_checkpoint("after", folder / how)
        own = trainer.batches.own
        trainer.batches.own = _failing(own, how, trainer) if is_it else own
        trainer.fit()


def _be_killed(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _failing(
    batches: Iterator[torch.Tensor], how: str, trainer: LatentParallelTrainer
) -> Iterator[torch.Tensor]:
    for i, batch in enumerate(batches):
        if i == 5:
            if how in ("killed", "first is killed"):
                os.kill(os.getpid(), signal.SIGKILL)
            elif how == "hangs":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif how == "terminated":
                os.kill(os.getpid(), signal.SIGTERM)
            elif how == "nan":
                batch[0, 0] = torch.nan
            elif how == "out of data":
                return
            elif how == "source":
                raise OSError("the disk is gone")
            elif how == "raises":
                trainer.sae.adapter.observe = None
            elif how == "parts":
                trainer.sae.b_dec.data[0] += 1e-12
            elif how == "adam":
                trainer.optimizer.state[trainer.sae.b_dec]["exp_avg"][0] += 1e-12
        yield batch


def command(rank: int, folder: Path, llm: Path, *flags: str) -> None:
    """``sae-lens-gba train`` on a tiny model, in a folder; ends as the command does."""
    os.chdir(folder)
    os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true")
    texts = random_texts()
    vars(models)["load_model"] = lambda *_, **__: hooked_transformer(llm)
    vars(sae_lens.training.activations_store)["load_dataset"] = lambda *_, **__: texts
    raise SystemExit(main(["train", *flags]))


def command_that_is_stopped(rank: int, folder: Path, llm: Path, *flags: str) -> None:
    """`command`; rank 0 is sent SIGTERM once it has written its first checkpoint.

    Each rank leaves in ``rows.RANK`` how many rows of the data set it has read.
    """
    save = LatentParallelTrainer.save_checkpoint
    save_to_resume = vars(LatentParallelTrainer)["_save_to_resume"]

    def save_and_be_stopped(trainer: LatentParallelTrainer, *args: Any, **kwargs: Any) -> None:
        save(trainer, *args, **kwargs)
        if rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    def save_and_count(trainer: LatentParallelTrainer) -> None:
        save_to_resume(trainer)
        runner = vars(trainer)["save_checkpoint_fn"].__self__
        Path(f"rows.{rank}").write_text(str(runner.activations_store.n_dataset_processed))

    vars_of_class: Any = LatentParallelTrainer
    vars_of_class.save_checkpoint = save_and_be_stopped
    vars_of_class._save_to_resume = save_and_count
    command(rank, folder, llm, *flags)


def command_that_goes_on(rank: int, folder: Path, llm: Path, *flags: str) -> dict[str, Any]:
    """`command`, which must end well; the decoder that it began with, and its number of steps."""
    fit, found = SAETrainer.fit, {}

    def fit_and_tell(trainer: SAETrainer[Any, Any]) -> Any:
        sae: Any = trainer.sae
        whole = sae.whole() if isinstance(sae, LatentSlice) else sae
        if whole is not None:
            found["W_dec"] = whole.W_dec.detach().clone()
        fitted = fit(trainer)
        found["n_steps"] = int(sae.adapter.n_steps)
        return fitted

    vars_of_class: Any = SAETrainer
    vars_of_class.fit = fit_and_tell
    try:
        command(rank, folder, llm, *flags)
    except SystemExit as end:
        assert end.code == 0
    return found


def command_that_is_killed(rank: int, folder: Path, llm: Path, *flags: str) -> None:
    """`command`; each rank dies after its third checkpoint in time."""
    save, saved = vars(LatentParallelTrainer)["_save_in_time"], set()

    def save_and_die(trainer: LatentParallelTrainer) -> None:
        save(trainer)
        saved.add(trainer.n_training_samples)
        if len(saved - {0}) == 3:
            os._exit(9)

    vars_of_class: Any = LatentParallelTrainer
    vars_of_class._save_in_time = save_and_die
    command(rank, folder, llm, *flags)


def synthetic(rank: int, folder: Path) -> float:
    """SyntheticSAERunner's run, with evaluations; L0 of what came back."""
    cfg = synthetic_runner_config(
        tiny_config(), 40, 63, folder, eval_samples=500, eval_frequency=10
    )
    result = train_synthetic_sae(cfg)
    assert (result.final_eval is None) == (rank != 0)
    assert wandb.run is None
    return result.sae.cfg.d_sae


def fit_beside_one_process(rank: int, folder: Path, cases: list[dict[str, Any]]) -> list[float]:
    """For each case, how far apart the stock SAEs are that ranks and one process end with."""
    far = []
    with join() as ranks:
        for settings in cases:
            sae = trainer_on(ranks, whole_sae(**settings), 30).fit()
            if rank != 0:
                continue
            alone = whole_sae(**settings)
            data = samples(architecture=alone.cfg.architecture())
            one = make_trainer(alone, 30, data, BATCH, lr=3e-3, lr_end=3e-3)
            weights = []
            for name, trained in (("ranks", sae), ("one", one.fit())):
                trained.save_inference_model(folder / name)
                weights.append(load_file(folder / name / "sae_weights.safetensors"))
            far.append(max(float((weights[0][k] - w).abs().max()) for k, w in weights[1].items()))
    return far


def train_twice(rank: int, how: str) -> dict[str, float]:
    """An SAE that ranks trained is folded and trained once more; what rank 0 finds."""
    settings = {"normalize_activations": "expected_average_only_in"} if how == "normalised" else {}
    x = next(samples(seed=8))
    with join() as ranks:
        first: Any = trainer_on(ranks, whole_sae(**settings), 30).fit()
        if how == "folded" and rank == 0:
            first.fold_W_dec_norm()
        own = LatentSlice.of(first if rank == 0 else None, ranks)
        with torch.no_grad():
            taken_over = own.decode(own.encode(x))
        trainer = LatentParallelTrainer(trainer_config(30), own, part_of(samples(2), ranks))
        second: Any = trainer.fit()
    if rank != 0:
        return {}
    with torch.no_grad():
        return {
            "taken over otherwise by": float((taken_over - first(x)).abs().max()),
            "error before": float((first(x) - x).square().sum()),
            "error after": float((second(x) - x).square().sum()),
            "l0": second.stock_metadata().gba["l0"]["measured"],
        }
