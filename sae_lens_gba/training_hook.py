"""Bias adaptation attached to SAELens' own training architectures."""

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sae_lens import JumpReLUTrainingSAE, StandardTrainingSAE, TrainingSAE
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.hooks import RemovableHandle

from sae_lens_gba.adaptation_settings import AdaptationSettings, require_known
from sae_lens_gba.atomic_write import write_atomically
from sae_lens_gba.batch_statistics import require_usable, typical_norm
from sae_lens_gba.bias_adapter import BiasAdapter
from sae_lens_gba.gba_parameters import GBAParameters
from sae_lens_gba.neuron_groups import NeuronGroups

STATE_FILENAME = "bias_adaptation_hook.safetensors"


class BiasAdaptationHook:
    """Makes another SAELens training SAE hold a frequency spectrum.

        sae = TrainingSAE.from_dict({"architecture": "standard", "l1_coefficient": 0.0, ...})
        hook = BiasAdaptationHook.attach(sae, target_l0=32)
        ...                                       # train sae with any SAELens runner
        hook.remove()

    While attached, ``b_enc`` of a standard SAE, or ``threshold`` of a jumprelu SAE, gets no
    gradient: it is moved by the same `BiasAdapter` as a GBA SAE's, watching the SAE's
    ``hook_sae_acts_pre`` on batches of samples (n, d_in), in training mode and with gradients.
    ``b_dec`` of a standard SAE gets its gradient from the output alone, as a GBA SAE's: the
    encoder's would move it until the feedback is undone. Losses are left as they are: set the
    sparsity coefficient to 0, or it works against the adaptation.

    A copy of the SAE (``copy.deepcopy``) has a hook of its own, and ``sae.reset_hooks`` leaves it
    where it is: `remove` is what ends the adaptation.

    Checkpoints that SAELens saves while the hook is attached have its state in a file beside
    the weights; attach the hook before resuming from one, and it goes on where it stopped.

    Attributes:
        adapter: counters, targets and measured frequencies.
    """

    def __init__(self, sae: TrainingSAE[Any], settings: AdaptationSettings):
        self.sae = sae
        self._handles: list[RemovableHandle] = []
        spectrum = settings.spectrum_of(sae.cfg.d_sae)
        self.adapter = BiasAdapter(
            spectrum,
            settings.bias_update,
            settings.rates_for(sae.cfg.d_in, spectrum),
            settings.adapt_every_n_steps,
            dtype=torch.promote_types(sae.dtype, torch.float32),
            device=sae.device,
        )

    @classmethod
    def attach(cls, sae: TrainingSAE[Any], **settings: Any) -> "BiasAdaptationHook":
        """Attach to ``sae``.

        Args:
            sae: a standard or jumprelu training SAE of SAELens.
            settings: fields of `AdaptationSettings`, such as ``target_l0``.

        Raises:
            TypeError: the SAE has no bias or threshold to adapt, or adapts it itself.
            ValueError: there is no such setting, or it is not possible, or a hook is attached
                already.
        """
        if "save_model" in vars(sae):
            raise ValueError("this SAE already has a BiasAdaptationHook: remove() it first.")
        known = {field.name for field in fields(AdaptationSettings)}
        require_known(settings, known, "a BiasAdaptationHook")
        adaptation = AdaptationSettings(**settings)
        adaptation.check(sae.cfg.d_sae)
        adaptation.warn_of_open_l0(sae.cfg.d_sae)
        hook = cls(sae, adaptation)
        hook._take_over()
        return hook

    def remove(self) -> None:
        """Give the bias or threshold back to the optimizer; the SAE is stock again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._parameter.requires_grad_(True)
        for name in ("save_model", "load_weights_from_checkpoint", "process_sae_in"):
            vars(self.sae).pop(name, None)

    def groups(self) -> NeuronGroups:
        """Groups, targets, and frequencies as measured at the last adaptation."""
        return self.adapter.groups()

    @property
    def _parameter(self) -> nn.Parameter:
        return _adapted_parameter(self.sae)  # another one where moving the SAE made it so

    def _take_over(self) -> None:
        self._parameter.requires_grad_(False)
        self._parameter.grad = None
        sae = self.sae
        # torch's own hooks: TransformerLens' take no part in a deepcopy, and a reset removes them
        self._handles = [
            sae.hook_sae_input.register_forward_hook(self._on_input),
            sae.hook_sae_acts_pre.register_forward_hook(self._on_hidden_pre),
        ]
        # instance attributes shadow the class' methods until remove()
        vars(sae)["save_model"] = partial(self._save_with_state, sae.save_model)
        vars(sae)["load_weights_from_checkpoint"] = partial(
            self._load_with_state, sae.load_weights_from_checkpoint
        )
        if isinstance(sae, StandardTrainingSAE):
            vars(sae)["process_sae_in"] = partial(self._encoder_input, sae.process_sae_in)

    def _is_step(self, tensor: torch.Tensor) -> bool:
        """Whether samples (n, d) are trained on; SAELens leaves SAEs in training mode."""
        return self.sae.training and torch.is_grad_enabled() and tensor.ndim == 2

    def _encoder_input(
        self, process_sae_in: Callable[[torch.Tensor], torch.Tensor], sae_in: torch.Tensor
    ) -> torch.Tensor:
        x = process_sae_in(sae_in)
        return x.detach() if self.sae.training else x

    def _on_input(self, point: nn.Module, args: Any, tensor: torch.Tensor) -> None:
        if self._is_step(tensor):
            self._parameter.requires_grad_(False)  # whoever froze and thawed the SAE
            self._follow(tensor)

    @torch.no_grad()
    def _follow(self, tensor: torch.Tensor) -> None:
        if len(tensor) == 0:
            raise ValueError("a batch of no samples is not possible: at least one is trained on.")
        require_usable(tensor, step=self.adapter.steps_taken)
        if self.adapter.peak.device != tensor.device:  # the SAE was moved since
            self.adapter.to(tensor.device)
        x = self.sae.run_time_activation_norm_fn_in(tensor)  # type: ignore[has-type]
        self.adapter.follow_norm(
            typical_norm(x - self.sae.b_dec * self.sae.cfg.apply_b_dec_to_input, tensor)
        )

    def _on_hidden_pre(self, point: nn.Module, args: Any, tensor: torch.Tensor) -> None:
        if self._is_step(tensor):
            self._adapt(tensor)

    @torch.no_grad()
    def _adapt(self, tensor: torch.Tensor) -> None:
        is_bias = self._parameter is not getattr(self.sae, "threshold", None)
        parameter = self._parameter.data
        # SAELens fires by the threshold in the precision of what it compares it with
        self.adapter.observe(tensor, None if is_bias else parameter.to(tensor.dtype))
        new_bias = self.adapter.adapt_if_due(parameter if is_bias else -parameter, self._bias_range)
        if new_bias is not None:
            # a new tensor: what the step has computed with the old values keeps them
            self._parameter.data = (new_bias if is_bias else -new_bias).to(parameter.dtype)

    def _bias_range(self) -> torch.Tensor:
        return self.adapter.input_norm * self.sae.W_enc.detach().norm(dim=0)

    def _save_with_state(
        self, save_model: Callable[..., tuple[Path, Path]], path: str | Path
    ) -> tuple[Path, Path]:
        paths = save_model(path)
        state = {name: value.contiguous() for name, value in self.adapter.state_dict().items()}
        write_atomically(Path(path) / STATE_FILENAME, partial(save_file, state))
        return paths

    def _load_with_state(self, load: Callable[..., None], checkpoint_path: str | Path) -> None:
        state_path = Path(checkpoint_path) / STATE_FILENAME
        if not state_path.is_file():
            raise FileNotFoundError(
                f"{state_path} does not exist: the checkpoint was saved without a "
                "BiasAdaptationHook. remove() the hook to resume without bias adaptation."
            )
        load(checkpoint_path)
        state = load_file(state_path)
        self.adapter.load_state_dict(state)


def _adapted_parameter(sae: TrainingSAE[Any]) -> nn.Parameter:
    if isinstance(sae, JumpReLUTrainingSAE):
        return sae.threshold
    if isinstance(sae, StandardTrainingSAE):
        return sae.b_enc
    if isinstance(sae, GBAParameters):
        raise TypeError(f"{type(sae).__name__} adapts its biases itself: it needs no hook.")
    raise TypeError(
        f"{type(sae).__name__} has no bias or threshold to adapt: BiasAdaptationHook takes "
        "StandardTrainingSAE and JumpReLUTrainingSAE."
    )
