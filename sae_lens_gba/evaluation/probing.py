"""Sparse probing of a saved SAE with sae-probes, in one call."""

import contextlib
import importlib
import io
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_lens_gba.sources import load_model_of, load_saes

BENCHMARK_SEQUENCE_LENGTH = 1024

_REMEDY = (
    "install it with: pip install scikit-learn xgboost-cpu zstandard pandas, then "
    "pip install --no-deps sae-probes"
)


@dataclass(frozen=True)
class ProbeScore:
    """How well a logistic regression on k latents tells two classes of texts apart.

    Attributes:
        dataset: name of the data set, as sae-probes numbers them.
        k: latents it may use: those whose mean differs most between the classes.
        test_auc: area under the ROC curve on held-out texts, 0.5 is chance.
        test_accuracy: share of held-out texts it gets right.
        test_f1: F1 score on them.
        latents: the k latents, most different first.
    """

    dataset: str
    k: int
    test_auc: float
    test_accuracy: float
    test_f1: float
    latents: list[int]


def probe(
    sae_dir: str | Path,
    datasets: Sequence[str],
    ks: Sequence[int] = (1, 16),
    model: Any = None,
    device: str = "cpu",
    activations_cache: str | Path | None = None,
    max_seq_len: int = BENCHMARK_SEQUENCE_LENGTH,
    seed: int = 42,
) -> list[ProbeScore]:
    """Probe an SAE on the last token of texts, in sae-probes' "normal" setting with L1.

    Args:
        sae_dir: folder of a saved SAE.
        datasets: names as in ``sae_probes.DATASETS``, e.g. "5_hist_fig_ismale".
        ks: numbers of latents to probe with.
        model: loaded TransformerLens model, or its hub name or folder; None is the SAE's own,
            see `sae_lens_gba.sources.load_model_of`.
        device: where to run.
        activations_cache: folder to keep the model's activations in, for the next SAE of the
            same model and ``max_seq_len``; None keeps none.
        max_seq_len: longer texts lose their beginning. Scores are comparable with published
            ones only at the default of 1024.
        seed: of the split.

    Raises:
        ImportError: sae-probes is not installed.
        ValueError: a data set is unknown, ks is empty or not positive, or the SAE is of one head.
    """
    sae_probes = _import_sae_probes()
    unknown = [name for name in datasets if name not in sae_probes.DATASETS]
    if unknown or not datasets:
        raise ValueError(f"datasets={unknown or datasets}: give names from sae_probes.DATASETS.")
    if not ks or min(ks) < 1:
        raise ValueError(f"ks={ks!r} is not possible: give numbers of latents, at least 1.")
    (saved,) = load_saes([Path(sae_dir).expanduser()], device)
    if saved.sae.cfg.metadata.hook_head_index is not None:
        raise ValueError(
            f"{sae_dir} is of one attention head, of which sae-probes takes no activations: probe "
            "an SAE of all heads."
        )
    if saved.sae.cfg.reshape_activations == "hook_z":  # its activations have the heads apart
        saved.sae.turn_on_forward_pass_hook_z_reshaping()
    if model is None or isinstance(model, str | os.PathLike):
        name = None if model is None else str(model)
        model = load_model_of(saved.sae, name, device)
    # a "/" would end up in file names
    model_name = str(saved.sae.cfg.metadata.model_name).replace("/", "_")
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        cache = Path(activations_cache or scratch) / f"context_{max_seq_len}"
        cache.mkdir(parents=True, exist_ok=True)
        where = {"model_name": model_name, "model_cache_path": cache, "device": device}
        sae_probes.generate_model_activations.ensure_dataset_activations(
            dataset_short_names=list(datasets),
            hook_names=[saved.hook_name],
            max_seq_len=max_seq_len,
            model=model,
            **where,
        )
        sae_probes.run_sae_evals(
            sae=saved.sae,
            hook_name=saved.hook_name,
            reg_type="l1",
            setting="normal",
            ks=list(ks),
            results_path=Path(scratch) / "results",
            datasets=list(datasets),
            seed=seed,
            **where,
        )
        return _read_scores(Path(scratch) / "results", datasets)


def _read_scores(folder: Path, datasets: Sequence[str]) -> list[ProbeScore]:
    rows = [row for path in folder.rglob("*.json") for row in json.loads(path.read_text())]
    rows.sort(key=lambda row: (datasets.index(row["dataset"]), row["k"]))
    return [
        ProbeScore(
            dataset=row["dataset"],
            k=row["k"],
            test_auc=row["test_auc"],
            test_accuracy=row["test_acc"],
            test_f1=row["test_f1"],
            latents=row["indices"],
        )
        for row in rows
    ]


def _import_sae_probes() -> Any:
    try:
        for part in ("generate_model_activations", "run_sae_evals"):
            importlib.import_module(f"sae_probes.{part}")
        return importlib.import_module("sae_probes")
    except ImportError as error:
        raise ImportError(f"probing needs {error.name}: {_REMEDY}.") from error
