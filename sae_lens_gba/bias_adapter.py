"""The state of bias adaptation between steps: what is counted, and when biases move."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sae_lens_gba.batch_statistics import followed_norm
from sae_lens_gba.bias_adaptation import (
    UPDATE_RULES,
    AdaptationRates,
    Observation,
    Targets,
    next_band,
)
from sae_lens_gba.frequency_spectrum import FrequencySpectrum
from sae_lens_gba.host_copy import HostCopy
from sae_lens_gba.latent_share import ALL_LATENTS, AllLatents
from sae_lens_gba.neuron_groups import NeuronGroups
from sae_lens_gba.precision import apply_keeping_float32

logger = logging.getLogger(__name__)

_MOST_IN_WARM_UP = 0.6  # share of samples that no target is raised above


class BiasAdapter(nn.Module):
    """Counts how often latents fire, and every T steps moves their biases.

    All state is in persistent buffers of O(d_sae), so it travels with ``state_dict`` and a
    resumed run goes on where it stopped, between two adaptations as well. Float state keeps
    its precision under ``.to(dtype)``.

    Args:
        spectrum: the groups and their targets.
        rule: name of a rule in `UPDATE_RULES`.
        rates: step sizes and limits.
        adapt_every_n_steps: optimizer steps between two adaptations (T).
        dtype: of peaks and frequencies.
        device: where the state lives.

    Attributes:
        group: group index of each latent, shape (d_sae,).
        target_frequency: share of samples, shape (d_sae,).
        fire_counts: samples on which each latent was active since the last adaptation.
        peak: largest pre-activation (bias included) since then, at least 0.
        silent_samples: samples since each latent was last active.
        n_samples: samples since the last adaptation.
        n_steps: steps since the beginning.
        frequency: share of samples measured at the last adaptation; 0 before the first.
        near_counts: samples since the last adaptation on which each latent was active within
            ``band`` of its threshold.
        band: in pre-activation units; 0 before the first adaptation.
        input_norm: typical norm of the centred input; 0 until it has been estimated. It follows
            the data slowly, see `followed_norm`.
        warm_up: what the targets are multiplied by for now.
        share: of the SAE's latents, what is counted here: all, or one process' part of them.
            ``spectrum`` is that of all.
    """

    group: torch.Tensor
    target_frequency: torch.Tensor
    fire_counts: torch.Tensor
    peak: torch.Tensor
    silent_samples: torch.Tensor
    n_samples: torch.Tensor
    n_steps: torch.Tensor
    near_counts: torch.Tensor
    band: torch.Tensor
    frequency: torch.Tensor
    input_norm: torch.Tensor
    share: AllLatents = ALL_LATENTS
    warm_up: float = 1.0

    def __init__(
        self,
        spectrum: FrequencySpectrum,
        rule: str,
        rates: AdaptationRates,
        adapt_every_n_steps: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        super().__init__()
        self.rule = UPDATE_RULES[rule]
        self.rates = rates
        self.adapt_every_n_steps = adapt_every_n_steps
        self.spectrum = spectrum
        self._host_steps = HostCopy(int)
        d_sae = sum(spectrum.sizes)

        def zeros(*shape: int, of: torch.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=of, device=device)

        self.register_buffer("group", spectrum.group_of_latent().to(device))
        self.register_buffer("target_frequency", spectrum.target_of_latent().to(device, dtype))
        self.register_buffer("fire_counts", zeros(d_sae, of=torch.long))
        self.register_buffer("peak", zeros(d_sae, of=dtype))
        self.register_buffer("silent_samples", zeros(d_sae, of=torch.long))
        self.register_buffer("n_samples", zeros(of=torch.long))
        self.register_buffer("n_steps", zeros(of=torch.long))
        self.register_buffer("frequency", zeros(d_sae, of=dtype))
        self.register_buffer("near_counts", zeros(d_sae, of=torch.long))
        self.register_buffer("band", zeros(d_sae, of=dtype))
        self.register_buffer("input_norm", zeros(of=dtype))

    def _load_from_state_dict(
        self, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """As torch's, but that targets follow from the settings.

        Which latent is in which group is as stored, if groups of these sizes are.
        """
        if f"{prefix}group" in state_dict:
            group = self._group_to_load(state_dict[f"{prefix}group"].long())
            state_dict[f"{prefix}group"] = group
            state_dict[f"{prefix}target_frequency"] = torch.tensor(self.spectrum.frequencies)[
                group.cpu()
            ]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _group_to_load(self, stored: torch.Tensor) -> torch.Tensor:
        sizes = torch.bincount(stored, minlength=self.spectrum.n_groups).tolist()
        if sizes == list(self.spectrum.sizes):
            return stored
        logger.warning(
            "the stored state has groups of sizes %s, the settings ask for %s: latents are "
            "assigned to groups anew, in their order.",
            sizes,
            list(self.spectrum.sizes),
        )
        return self.spectrum.group_of_latent()

    @property
    def steps_taken(self) -> int:
        """``n_steps`` as it is known on the host, without waiting for the device."""
        steps: int = self._host_steps(self.n_steps)
        return steps

    @property
    def targets(self) -> Targets:
        """Those of the moment, while training; an SAE in use has `target_frequency`."""
        frequency = self.target_frequency
        if self.warm_up > 1:
            most = frequency.clamp(min=_MOST_IN_WARM_UP)
            frequency = (self.warm_up * frequency).minimum(most)
        return Targets(self.group, frequency, self.spectrum.n_groups, self.share)

    @property
    def target_l0(self) -> float:
        """Active latents a sample, of the whole SAE, when every group is on target."""
        return float(self.share.whole(self.target_frequency).sum())

    def groups(self) -> NeuronGroups:
        """Groups, targets, and frequencies as measured at the last adaptation."""
        return NeuronGroups(self.group.cpu(), self.target_frequency.cpu(), self.frequency.cpu())

    @torch.no_grad()
    def follow_norm(self, norm: torch.Tensor) -> None:
        """Take in the typical norm of one more batch of centred inputs, shape ()."""
        self.input_norm.copy_(followed_norm(self.input_norm, norm, self.is_first_window))

    @property
    def is_first_window(self) -> torch.Tensor:
        """Whether no adaptation was due so far, shape ()."""
        return self.n_steps < self.adapt_every_n_steps

    @torch.no_grad()
    def observe(
        self,
        pre_activations: torch.Tensor,
        limit: torch.Tensor | None = None,
        unit: torch.Tensor | float = 1.0,
    ) -> None:
        """Count one batch.

        Args:
            pre_activations: bias included, shape (n, d_sae); a sparse COO tensor holds
                those of active latents only.
            limit: a latent is active above it, shape (d_sae,) or (); None means 0.
            unit: of the statistics, above 0, shape ().
        """
        if limit is None:
            limit = torch.zeros_like(self.peak)
        limit = limit.to(self.peak.dtype).expand_as(self.peak)
        if pre_activations.is_sparse:
            latent = pre_activations.indices()[1]
            values = (pre_activations.values() - limit[latent]) / unit
            # not by bincount, which reads its largest entry on the host
            self.fire_counts.scatter_add_(0, latent, torch.ones_like(latent))
            self.near_counts.index_add_(0, latent, (values <= self.band[latent]).long())
            self.peak.scatter_reduce_(0, latent, values.to(self.peak.dtype), "amax")
        else:
            # never all of them less their limits: a pass over the batch costs more than the rest
            n_active = (pre_activations > limit).sum(dim=0)
            self.fire_counts += n_active
            beyond = pre_activations > limit + self.band * unit
            self.near_counts += n_active - beyond.sum(dim=0)
            largest = (pre_activations.amax(dim=0) - limit) / unit
            self.peak = torch.maximum(self.peak, largest.to(self.peak.dtype))
        self.n_samples += pre_activations.shape[0]

    @torch.no_grad()
    def adapt_if_due(
        self, bias: torch.Tensor, bias_range: Callable[[], torch.Tensor]
    ) -> torch.Tensor | None:
        """End a step; on every T-th one, the biases to go on with.

        Args:
            bias: current biases, shape (d_sae,).
            bias_range: gives c, shape (d_sae,) or (); called only when needed.

        Returns:
            The new biases, shape (d_sae,), or None when no adaptation is due.
        """
        steps = self.steps_taken + 1
        self.n_steps += 1
        self._host_steps.set(self.n_steps, steps)
        if steps % self.adapt_every_n_steps != 0 or int(self.n_samples) == 0:
            return None
        self.frequency = self.fire_counts.to(self.peak.dtype) / self.n_samples
        # to the window's resolution: a latent active in it counts as silent since its end
        self.silent_samples = torch.where(
            self.fire_counts > 0, 0, self.silent_samples + self.n_samples
        )
        near = self.near_counts.to(self.peak.dtype) / self.n_samples
        seen = Observation(self.frequency, self.peak, self.silent_samples, near, self.band)
        limits = bias_range().to(self.peak.dtype).expand_as(self.peak)
        new_bias = self.rule(bias.to(self.peak.dtype), seen, self.targets, self.rates, limits)
        self.band = next_band(seen, self.targets, self.rates, limits)
        self.fire_counts.zero_()
        self.near_counts.zero_()
        self.peak = torch.zeros_like(self.peak)
        self.n_samples.zero_()
        return new_bias

    def _apply(self, *args: Any, **kwargs: Any) -> "BiasAdapter":
        apply_keeping_float32(
            dict(self.named_buffers(recurse=False)),
            lambda: super(BiasAdapter, self)._apply(*args, **kwargs),
            self.get_buffer,
        )
        return self
