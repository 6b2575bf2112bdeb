"""From a training SAE to the stock SAE that its user gets, in memory."""

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

from sae_lens import SAE, TrainingSAE
from sae_lens.constants import ACTIVATION_SCALER_CFG_FILENAME
from sae_lens.training.activation_scaler import ActivationScaler

from sae_lens_gba.errors import DamagedFileError, MissingFileError
from sae_lens_gba.training_sae import GBATrainingSAE


def stock_form(training_sae: TrainingSAE[Any]) -> SAE[Any]:
    """The SAE, with metadata, that ``training_sae`` is saved as by `save_inference_model`.

    A BatchTopK SAE, for one, trains with a batch's top activations and is used with a
    threshold. No weights are shared; a GBA SAE is calibrated by it, as by saving it.
    """
    weights = training_sae.state_dict()
    training_sae.process_state_dict_for_saving_inference(weights)
    cfg = deepcopy(training_sae.cfg.get_inference_sae_cfg_dict())
    if isinstance(training_sae, GBATrainingSAE):
        cfg["metadata"] = training_sae.stock_metadata().to_dict()
    sae: SAE[Any] = SAE.from_dict(cfg)
    sae.load_state_dict(weights)
    return sae.eval()


def fold_activation_scaler(sae: SAE[Any], checkpoint: Path) -> None:
    """Fold a checkpoint's normalisation of activations into ``sae``, as a run does at its end.

    Raises:
        DamagedFileError: the scaling factor is not a number above 0.
        MissingFileError: a GBA checkpoint's normalisation is not there.
    """
    path = checkpoint / ACTIVATION_SCALER_CFG_FILENAME
    if not path.is_file():
        if isinstance(sae, GBATrainingSAE):
            _require_no_scaler(sae.cfg.normalize_activations, path)
        return
    scaler = ActivationScaler()
    scaler.load(path)
    if scaler.scaling_factor is not None:
        if not 0 < scaler.scaling_factor < math.inf:
            raise DamagedFileError(
                f"{path} has scaling_factor={scaler.scaling_factor}: a number above 0 is needed."
            )
        sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
    elif scaler.whitening is None and isinstance(sae, GBATrainingSAE):
        _require_no_scaler(sae.cfg.normalize_activations, path)
    if scaler.whitening is not None:
        w = scaler.whitening
        sae.fold_activation_whitening(w.mean, w.matrix, w.inverse_matrix)


def _require_no_scaler(normalize_activations: str, path: Path) -> None:
    if normalize_activations in ("expected_average_only_in", "covariance_whitening"):
        raise MissingFileError(
            f"{path.parent} was trained with normalize_activations={normalize_activations!r}, but "
            f"{path.name} does not tell its statistics (or is missing): the checkpoint is not "
            "whole; copy it again, or use an earlier one."
        )
