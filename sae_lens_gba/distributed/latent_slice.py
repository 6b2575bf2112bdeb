"""A rank's part of a GBA SAE or transcoder, which SAELens takes for one with fewer latents."""

from copy import deepcopy
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from sae_lens import TrainingSAEConfig
from typing_extensions import override

from sae_lens_gba.config import GBATrainingSAEConfig
from sae_lens_gba.distributed.ranks import Ranks
from sae_lens_gba.distributed.share import LatentShare
from sae_lens_gba.frequency_spectrum import FrequencySpectrum
from sae_lens_gba.registration import CLASSES
from sae_lens_gba.training_sae import GBATrainingSAE
from sae_lens_gba.training_transcoder import GBATrainingSkipTranscoder, GBATrainingTranscoder
from sae_lens_gba.transcoder_config import (
    GBATrainingSkipTranscoderConfig,
    GBATrainingTranscoderConfig,
)


@dataclass
class SliceConfig(GBATrainingSAEConfig):
    """Of a `LatentSlice`: ``d_sae`` is this rank's, all else is the whole SAE's.

    Args:
        own_spectrum (FrequencySpectrum | None): The groups, with this rank's part of each, which
            may be none.
    """

    own_spectrum: FrequencySpectrum | None = None

    @override
    def spectrum_of(self, d_sae: int) -> FrequencySpectrum:
        assert self.own_spectrum is not None
        return self.own_spectrum


@dataclass
class TranscoderSliceConfig(GBATrainingTranscoderConfig, SliceConfig):
    """Of a `TranscoderSlice`."""


@dataclass
class SkipTranscoderSliceConfig(GBATrainingSkipTranscoderConfig, SliceConfig):
    """Of a `SkipTranscoderSlice`."""


class LatentSlice(GBATrainingSAE):
    """Some latents of every group; `Ranks` hold all of them between them.

    Every rank sees the same batches. Encoding, biases, counters, weights' gradients and
    optimizer are each rank's own. What goes between ranks:

        every step        the output, by nested set: (n_nested, batch, d_out); gradients of what is
                          shared: (d_out,), and a skip connection's; two single numbers
        every adaptation  sums by group, a few times (2, n_groups)
        calibration       the margins that its pairs of sample and latent have; the output for
                          the samples, once; some fifty single numbers

    What is `shared` and what its step needs are bit-equal on all ranks. Every method that looks at
    all latents (decode, groups' means, calibration, saving) must be called by all ranks.
    """

    share: LatentShare
    _SHARED: tuple[str, ...] = ("b_dec",)

    @classmethod
    def of(cls, whole: GBATrainingSAE | None, ranks: Ranks) -> "LatentSlice":
        """This rank's part of an SAE that rank 0 has, on any device.

        Args:
            whole: on rank 0 the SAE, new or trained; None on the others.
            ranks: all that are to train it.

        Raises:
            ValueError: there are fewer latents than ranks, or it is no GBA SAE or transcoder.
        """
        said = None
        if whole is not None:
            require_gba(whole.cfg)
            group = whole.adapter.group.cpu()
            follows = whole._encoder_follows_decoder
            said = (whole.cfg.architecture(), _settings(whole.cfg), group, follows)
        architecture, cfg, group, follows = ranks.from_rank(0, said)
        if len(group) < ranks.world:
            raise ValueError(
                f"d_sae={len(group)} is not possible on {ranks.world} ranks: start at most as many "
                "ranks as there are latents."
            )
        share = LatentShare(ranks, group)
        spectrum = CLASSES[architecture][1](**cfg).spectrum()
        sizes = torch.bincount(share.own(group.to(ranks.device)), minlength=spectrum.n_groups)
        own_spectrum = replace(spectrum, sizes=tuple(sizes.tolist()))
        own = {"d_sae": len(share), "device": str(ranks.device), "own_spectrum": own_spectrum}
        slice_class, slice_config = _SLICES[architecture]
        part = slice_class(slice_config(**{**cfg, **own}))
        part.share = part.adapter.share = share
        part.adapter.spectrum = spectrum
        if not follows:  # it was folded
            part._free_encoder()
        part.fill(whole)
        return part

    def shared(self) -> list[torch.nn.Parameter]:
        """The parameters without latents: the same on all ranks."""
        return [self.get_parameter(name) for name in self._SHARED]

    def fill(self, whole: GBATrainingSAE | None) -> None:
        """Take one's part of rank 0's SAE, which is None on the other ranks."""
        theirs = None if whole is None else whole.state_dict()
        shapes = self.whole_shapes()
        for name, tensor in self.state_dict().items():
            self.share.from_rank_0(tensor, None if theirs is None else theirs[name], shapes[name])
        self._started = False
        self._forget_calibration()

    def whole(self) -> GBATrainingSAE | None:
        """The SAE that all ranks make up, on the CPU of rank 0; None on the others."""
        shapes = self.whole_shapes()
        state = {
            name: self.share.to_rank_0(tensor, shapes[name])
            for name, tensor in self.state_dict().items()
        }
        if self.share.ranks.rank != 0:
            return None
        whole = self.empty_whole()
        whole.load_state_dict(state, assign=True)
        whole.to(device="cpu", dtype=self.dtype)
        whole._calibration, whole._other_l0s = self._calibration, self._other_l0s
        whole.train(self.training)
        return whole

    def empty_whole(self) -> GBATrainingSAE:
        """The SAE that all ranks make up, without its weights: on the meta device."""
        cfg = {**_settings(self.cfg), "d_sae": self.share.d_sae, "device": "meta"}
        whole_class, whole_config = CLASSES[self.cfg.architecture()]
        whole = whole_class(whole_config(**cfg))
        if not self._encoder_follows_decoder:
            whole._free_encoder()
        return whole

    def whole_shapes(self) -> dict[str, torch.Size]:
        """Of all parameters and buffers of the whole SAE."""
        return {name: value.shape for name, value in self.empty_whole().state_dict().items()}

    @override
    def save_model(self, path: str | Path) -> tuple[Path, Path]:
        """Save the whole SAE, from rank 0; all ranks must call it."""
        return self._saved_by_rank_0("save_model", path)

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        """Save the whole SAE as a stock one, from rank 0; all ranks must call it."""
        self.settle()
        return self._saved_by_rank_0("save_inference_model", path)

    def _saved_by_rank_0(self, method: str, path: str | Path) -> tuple[Path, Path]:
        whole = self.whole()
        saved = None if whole is None else getattr(whole, method)(path)
        return self.share.ranks.from_rank(0, saved)

    @override
    def load_weights_from_checkpoint(self, checkpoint_path: str | Path) -> None:
        """Take one's part of the whole SAE in a checkpoint, which rank 0 reads."""
        whole = None
        if self.share.ranks.rank == 0:
            whole = self.empty_whole()
            whole.to_empty(device="cpu")
            whole.load_weights_from_checkpoint(checkpoint_path)
        self.fill(whole)


class TranscoderSlice(LatentSlice, GBATrainingTranscoder):
    """Some latents of every group of a transcoder."""

    _SHARED: tuple[str, ...] = ("b_dec", "input_mean", "target_norm")


class SkipTranscoderSlice(TranscoderSlice, GBATrainingSkipTranscoder):
    """Some latents of every group of a skip transcoder, and the whole skip connection."""

    _SHARED = (*TranscoderSlice._SHARED, "skip")


_SLICES: dict[str, tuple[type[LatentSlice], type[SliceConfig]]] = {
    config.architecture(): (part, config)
    for part, config in (
        (LatentSlice, SliceConfig),
        (TranscoderSlice, TranscoderSliceConfig),
        (SkipTranscoderSlice, SkipTranscoderSliceConfig),
    )
}


def require_gba(cfg: TrainingSAEConfig) -> None:
    if cfg.architecture() not in CLASSES:
        raise ValueError(
            f"architecture={cfg.architecture()!r} is not possible on several ranks: train it in "
            f"one process, or take one of {', '.join(CLASSES)}."
        )


def _settings(cfg: GBATrainingSAEConfig) -> dict[str, Any]:
    names = [f.name for f in fields(CLASSES[cfg.architecture()][1]) if f.init]
    return {name: deepcopy(getattr(cfg, name)) for name in names}
