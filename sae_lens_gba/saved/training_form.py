"""From a stock SAE back to the GBA training SAE that has its function, in memory."""

import logging
import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import fields
from typing import Any

import torch
from sae_lens import SAE

from sae_lens_gba.adaptation_settings import require_known
from sae_lens_gba.config import GBATrainingSAEConfig
from sae_lens_gba.errors import NewerFormatError, NotTrainableError
from sae_lens_gba.frequency_spectrum import FrequencySpectrum
from sae_lens_gba.neuron_groups import NeuronGroups
from sae_lens_gba.registration import CLASSES
from sae_lens_gba.training_sae import GBATrainingSAE

logger = logging.getLogger(__name__)

# settings that say which frequencies the groups should have
_SPECTRUM_SETTINGS = {
    "target_l0",
    "n_groups",
    "highest_target_frequency",
    "lowest_target_frequency",
    "group_sizing",
    "group_size_exponent",
}


def training_form(
    sae: SAE[Any], groups: NeuronGroups | None, changes: Mapping[str, Any]
) -> GBATrainingSAE:
    """See `sae_lens_gba.to_training_sae`."""
    _require_trainable(sae, groups)
    for name in ("d_in", "d_sae"):
        if changes.get(name, getattr(sae.cfg, name)) != getattr(sae.cfg, name):
            raise NotTrainableError(
                f"{name}={changes[name]} is not possible: the SAE has {getattr(sae.cfg, name)}, "
                "and keeps its weights; leave it out."
            )
    require_known(changes, {f.name for f in fields(GBATrainingSAEConfig)}, "a GBA SAE")
    training_sae = GBATrainingSAE(_config(sae, groups, changes))
    with torch.no_grad():
        _copy_weights(sae, training_sae)
        _set_adapter(sae, training_sae, groups, regroup=bool(_SPECTRUM_SETTINGS & set(changes)))
    return training_sae


def _require_trainable(sae: SAE[Any], groups: NeuronGroups | None) -> None:
    architecture = sae.cfg.architecture()
    if architecture not in ("jumprelu", "standard"):
        raise NotTrainableError(
            f"an SAE of architecture {architecture!r} can't be trained with GBA: it takes "
            "'jumprelu' and 'standard'."
        )
    if groups is not None and tuple(groups.group.shape) != (sae.cfg.d_sae,):
        raise NotTrainableError(
            f"groups are for {groups.group.shape[0]} latents, the SAE has d_sae={sae.cfg.d_sae}: "
            "pass the groups of this SAE."
        )
    if architecture == "standard" and bool((_weights(sae)["b_enc"] > 0).any()):
        logger.warning(
            "b_enc of this SAE is above 0 for some latents; GBA's biases are not, so that the "
            "first adaptation changes it."
        )


def _config(
    sae: SAE[Any], groups: NeuronGroups | None, changes: Mapping[str, Any]
) -> GBATrainingSAEConfig:
    cfg = sae.cfg.to_dict()
    trained_with = training_config(cfg)
    settings: dict[str, Any] = {}
    if trained_with is not None:
        settings = trained_with.get_training_architecture_details()
        if trained_with.l0_warm_up_steps > 0 and "l0_warm_up_steps" not in changes:
            settings["n_nested_reconstructions"] = 1  # at the end they had no weight any more
    elif groups is not None:
        sizes = groups.group.bincount()
        settings = {
            "n_groups": len(sizes),
            "highest_target_frequency": float(groups.target_frequency.max()),
            "group_sizing": "equal" if int(sizes.max() - sizes.min()) <= 1 else "power_law",
        }
    if groups is not None and not _SPECTRUM_SETTINGS & set(changes):
        l0 = float(groups.target_frequency.double().sum())
        # a calibration moves targets at the same L0; another one was asked for since
        if trained_with is None or not math.isclose(trained_with.spectrum().l0, l0, rel_tol=0.02):
            settings["target_l0"] = l0
    if groups is None and trained_with is None and not _SPECTRUM_SETTINGS & set(changes):
        raise ValueError("target_l0=None is not possible: an SAE without groups has no L0 to keep.")
    for name in ("d_in", "d_sae", "apply_b_dec_to_input", "normalize_activations"):
        settings[name] = cfg[name]
    metadata = deepcopy(sae.cfg.metadata)
    metadata.neuronpedia_id = None  # its dashboards are not of what is trained from here
    settings.update(
        activation="jumprelu" if cfg["architecture"] == "jumprelu" else "relu",
        reshape_activations=cfg["reshape_activations"],
        dtype=cfg["dtype"],
        device=str(sae.device),
        tied=bool(settings.get("tied")) and _is_tied(sae),
        metadata=metadata,
        l0_warm_up_steps=0,  # it has been at its L0
    )
    return GBATrainingSAEConfig(**{**settings, **changes})


def _is_tied(sae: SAE[Any]) -> bool:
    """Folded at the end of training, encoder and decoder differ and stay two matrices."""
    weights = _weights(sae)
    directions = torch.nn.functional.normalize(weights["W_dec"], dim=1)
    return torch.allclose(directions, weights["W_enc"].T, rtol=1e-3, atol=1e-5)


def _weights(sae: SAE[Any]) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in sae.named_parameters()}


def _copy_weights(sae: SAE[Any], training_sae: GBATrainingSAE) -> None:
    weights = _weights(sae)
    norms = weights["W_dec"].norm(dim=1)
    encoder_rows = weights["W_enc"].T
    # a latent without a decoder gets its encoder's direction, at scale 0
    rows = torch.where((norms > 0)[:, None], weights["W_dec"], encoder_rows)
    training_sae.W_dec.data.copy_(torch.nn.functional.normalize(rows, dim=1))
    training_sae.output_scale.data.copy_(norms)
    copied = ["b_dec", "b_enc"]
    if not training_sae.cfg.tied:
        training_sae.encoder_correction.data.copy_(
            training_sae.correction_for(weights["W_enc"], training_sae.W_dec.detach())
        )
    if training_sae.cfg.activation == "jumprelu":
        copied.append("threshold")
    scale = _input_scale(sae)
    if scale is not None:
        training_sae.adapter.input_norm.fill_(scale * math.sqrt(sae.cfg.d_in))
    for name in copied:
        training_sae.get_parameter(name).data.copy_(weights[name] / (scale or 1.0))


def _input_scale(sae: SAE[Any]) -> float | None:
    """`GBATrainingSAE.input_scale` it was trained at, so that biases follow other inputs' scale."""
    scale = (sae.cfg.metadata.get("gba") or {}).get("input_scale")
    return scale if isinstance(scale, int | float) and 0 < scale < math.inf else None


def _set_adapter(
    sae: SAE[Any], training_sae: GBATrainingSAE, groups: NeuronGroups | None, regroup: bool
) -> None:
    adapter = training_sae.adapter
    if _input_scale(sae) is None:
        # not a new SAE: the first batch must not start b_dec and biases anew
        adapter.n_steps.fill_(adapter.adapt_every_n_steps)
    if groups is None:
        return
    adapter.frequency.copy_(groups.measured_frequency)
    spectrum: FrequencySpectrum = training_sae.cfg.spectrum()
    group = groups.group
    if regroup or tuple(group.bincount().tolist()) != spectrum.sizes:
        most_active_first = groups.measured_frequency.sort(descending=True, stable=True).indices
        group = torch.empty_like(group)
        group[most_active_first] = spectrum.group_of_latent()
    adapter.group.copy_(group)
    adapter.target_frequency.copy_(torch.tensor(spectrum.frequencies)[group])


def training_config(cfg: dict[str, Any]) -> GBATrainingSAEConfig | None:
    """Settings a stock SAE was trained with, from its cfg.json; None if not with GBA.

    Raises:
        NewerFormatError: it has settings that this version does not know.
    """
    metadata = cfg.get("metadata") or {}
    architecture = str(metadata.get("training_architecture"))
    if architecture not in CLASSES:
        return None
    _, config_class = CLASSES[architecture]
    details = metadata.get("training_architecture_details") or {}
    names = {f.name for f in fields(config_class)}
    unknown = sorted(set(details) - names)
    if unknown:
        raise NewerFormatError(
            f"the training config has settings this version does not know, {unknown}: "
            "pip install --upgrade sae-lens-gba."
        )
    settings = {name: value for name, value in {**cfg, **details}.items() if name in names}
    return config_class.from_dict({**settings, "architecture": architecture, "metadata": metadata})
