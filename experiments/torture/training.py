"""The training run that the other modules kill, starve and repeat, each in a process of its own."""

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Array2D, Dataset, Features
from sae_lens.constants import SAE_WEIGHTS_FILENAME
from sae_lens.synthetic import SyntheticSAERunner

import sae_lens_gba
from sae_lens_gba import GBATrainingSAE, GBATrainingSAEConfig, resumable_run
from sae_lens_gba.atomic_write import folder_written_whole
from sae_lens_gba.errors import StorageError
from sae_lens_gba.neuron_groups import GROUPS_FILENAME
from sae_lens_gba.runs.folder import has_ended
from tests.distributed.several import Rank, start
from tests.toolbox import (
    HOOK,
    VOCABULARY,
    hooked_transformer,
    language_model_config,
    make_trainer,
    mixture,
    random_texts,
    save_tokenizer,
    synthetic_runner_config,
)

BATCH, CONTEXT = 64, 16
LIVE = "a language model"
# LanguageModelSAETrainingRunner does both of the last, driven by `sae_lens_gba.train`
KINDS = ("SyntheticSAERunner", "SAETrainer", "cached activations", LIVE)
Files = dict[str, bytes]


def config(**settings: Any) -> GBATrainingSAEConfig:
    return GBATrainingSAEConfig(16, 64, n_groups=4, target_l0=4.0, **settings)


def publishable_sae() -> GBATrainingSAE:
    """That says of what model it is."""
    sae = GBATrainingSAE(config())
    sae.cfg.metadata.model_name, sae.cfg.metadata.hook_name = "user/model", "blocks.0"
    return sae


def train(
    _rank: int, folder: Path, kind: str, steps: int, seconds: float, settings: dict[str, Any]
) -> None:
    """Train into ``folder``, or go on there; nothing where a run has ended.

    Args:
        kind: one of `KINDS`.
        seconds: between two checkpoints; 0 writes them on signals only.
        settings: of the SAE.
    """
    logging.basicConfig(level=logging.INFO)  # in a process of its own
    if has_ended(folder):
        return
    sae_cfg = config(calibration_samples=1024, **settings)
    if kind not in ("SyntheticSAERunner", "SAETrainer"):
        _train_on_activations(folder, sae_cfg, steps, seconds / 60, live=kind == LIVE)
        return
    with resumable_run(folder, resume=True, checkpoint_minutes=seconds / 60):
        torch.manual_seed(0)
        if kind == "SAETrainer":
            sae = GBATrainingSAE(sae_cfg)
            trained = make_trainer(sae, steps, mixture(1, BATCH), BATCH).fit()
            trained.save_inference_model(folder)
            return
        SyntheticSAERunner(synthetic_runner_config(sae_cfg, steps, BATCH, folder)).run()


def _train_on_activations(
    folder: Path, sae: GBATrainingSAEConfig, steps: int, minutes: float, live: bool
) -> None:
    """Of the tiny language model, more than an epoch; what it needs is put beside ``folder``."""
    tokenizer, activations = folder.parent / "tokenizer", folder.parent / "activations"
    save_tokenizer(tokenizer, VOCABULARY)
    settings: dict[str, Any] = {}
    if not live:
        if not activations.is_dir():
            with folder_written_whole(activations) as new:
                _save_activations(new, steps // 8)
        settings = {
            "use_cached_activations": True,
            "cached_activations_path": str(activations),
        }
    cfg = language_model_config(
        folder, sae=sae, training_tokens=steps * BATCH, train_batch_size_tokens=BATCH, **settings
    )
    sae_lens_gba.train(
        cfg,
        model=hooked_transformer(tokenizer),
        dataset=random_texts(),
        resume=True,
        checkpoint_minutes=minutes,
    )


def _save_activations(folder: Path, batches: int) -> None:
    """As SAELens' CacheActivationsRunner leaves them."""
    rows = next(mixture(1, batches * BATCH)).view(-1, CONTEXT, 16)
    features = Features({HOOK: Array2D(rows.shape[1:], "float32")})
    Dataset.from_dict({HOOK: rows.numpy()}, features=features).save_to_disk(folder)


def begin(work: Path, folder: Path, *args: Any) -> Rank:
    """`train` in a process of its own, whose stderr is in ``work``."""
    (rank,) = start(train, 1, work, folder, *args)
    return rank


def weights(folder: Path) -> Files:
    """The files from which a reader takes the SAE's numbers."""
    names = (SAE_WEIGHTS_FILENAME, GROUPS_FILENAME)
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def uninterrupted(work: Path, *args: Any) -> tuple[Files, float]:
    """What `train` comes to with these arguments, and the seconds it takes."""
    started = time.monotonic()
    rank = begin(work, work / "run", *args)
    rank.wait(600)
    if rank.exit_code:
        raise RuntimeError(f"a run that nothing disturbed failed: {rank.said[-1000:]}")
    return weights(work / "run"), time.monotonic() - started


@contextmanager
def work_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="torture-") as work:
        yield Path(work)


def in_short(error: Exception) -> str:
    return f"{type(error).__name__}({str(error)[:80]!r})"


def unlike_ours(error: Exception) -> str | None:
    """What is wrong with how a save or a transfer failed; None if it is one sentence of ours."""
    if not isinstance(error, StorageError):
        return in_short(error)
    return "an error of several lines" if "\n" in str(error) else None


def row(fault: str, tried: int, lost: list[str], **more: Any) -> dict[str, Any]:
    """A row of the table; ``lost`` says for each loss what came instead."""
    return {
        "fault": fault,
        "tried": tried,
        "survived": tried - len(lost),
        "lost": len(lost),
        **({"what_was_lost": lost[:10]} if lost else {}),
        **more,
    }
