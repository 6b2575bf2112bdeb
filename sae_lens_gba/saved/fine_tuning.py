"""From a stock SAE, wherever it is, back to a GBA training SAE, to train it further."""

from pathlib import Path
from typing import Any

from sae_lens import SAE

from sae_lens_gba.neuron_groups import NeuronGroups
from sae_lens_gba.saved.loading import load
from sae_lens_gba.saved.saved_sae import SavedSAE
from sae_lens_gba.saved.training_form import training_form
from sae_lens_gba.training_sae import GBATrainingSAE


def to_training_sae(
    sae: SAE[Any] | SavedSAE | str | Path,
    groups: NeuronGroups | None = None,
    **changes: Any,
) -> GBATrainingSAE:
    """A GBATrainingSAE with the function of a stock jumprelu or standard SAE.

    Its settings are those it was trained with, where the SAE says so, with ``changes`` on
    top. Groups and targets are those of ``groups``; if a change concerns the frequencies
    (target_l0, n_groups, ...), the new targets go to latents by their measured frequency,
    highest to the most active. Its outputs are the same up to rounding: decoder norms move
    to ``output_scale``. Biases start where they were; b_dec is not started anew.

    For SAELens' ``from_pretrained_path``, save it: ``to_training_sae(...).save_model(folder)``.
    To resume an interrupted run exactly, use the checkpoint itself: this forgets the
    counters since the last adaptation.

    Args:
        sae: a stock SAE, what `load` returns, or a folder.
        groups: of its latents; None takes those of a `SavedSAE` or folder, or, for another
            SAE, groups in the order of its latents.
        changes: fields of `GBATrainingSAEConfig`.

    Raises:
        NotTrainableError: the SAE is of another architecture, or the groups of another SAE.
        ValueError: a setting is not possible.
        GBAError: a folder can't be read; see `load`.
    """
    if isinstance(sae, str | Path):
        sae = load(sae)
    if isinstance(sae, SavedSAE):
        groups = sae.groups if groups is None else groups
        sae = sae.sae
    return training_form(sae, groups, changes)
