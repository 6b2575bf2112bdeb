"""A transcoder as an SAE of the activations that it predicts: as such, SAELens evaluates it."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.training.activation_scaler import ActivationScaler


class _AtItsTarget:
    """Encodes what its model last had at the transcoder's input, whatever it is given.

    Whoever replaces a hook's activations by ``decode(encode(activations))``, as SAELens'
    `run_evals` does, replaces those of the target by the transcoder's output.
    """

    def __init__(self, transcoder: SAE[Any], scaler: ActivationScaler):
        self.cfg = copy(transcoder.cfg)
        self.cfg.metadata = deepcopy(transcoder.cfg.metadata)
        self.cfg.metadata.hook_name = self.cfg.metadata.hook_name_out
        self._transcoder, self._scaler = transcoder, scaler
        self._input: torch.Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transcoder, name)

    def capture(self, module: Any, inputs: Any, output: torch.Tensor) -> None:
        x = self._scaler.scale(output.detach()).to(self._transcoder.device)
        self._input = x.flatten(2)  # of attention heads, all in a row

    def encode(self, target: torch.Tensor) -> torch.Tensor:
        assert self._input is not None  # the model has come by
        return self._transcoder.encode(self._input)

    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        assert self._input is not None
        return decoded(self._transcoder, feature_acts, self._input)


@contextmanager
def at_its_target(
    sae: SAE[Any], model: Any, scaler: ActivationScaler | None = None
) -> Iterator[Any]:
    """What SAELens' evaluations on ``model`` are to be given for ``sae``, in the block.

    An SAE is given itself; a transcoder as an SAE at its ``metadata.hook_name_out``.

    Args:
        scaler: of the activations, while they are not folded into the weights.
    """
    if not is_transcoder(sae):
        yield sae
        return
    seen_there = _AtItsTarget(sae, scaler or ActivationScaler())
    point = model.hook_dict[sae.cfg.metadata.hook_name]
    handle = point.register_forward_hook(seen_there.capture)
    try:
        yield seen_there
    finally:
        handle.remove()


def decoded(sae: SAE[Any], feature_acts: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The output for activations of latents on inputs x, which a skip connection adds to."""
    out = sae.decode(feature_acts)
    W_skip = getattr(sae, "W_skip", None)
    return out if W_skip is None else out + x.to(out.dtype) @ W_skip.T


def is_transcoder(sae: SAE[Any]) -> bool:
    """Whether its output is to be compared with other activations than its input."""
    return hasattr(sae.cfg, "d_out")
