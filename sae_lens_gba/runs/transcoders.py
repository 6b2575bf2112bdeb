"""SAELens' runners, for transcoders: on pairs of activations, and evaluated at the target."""

from typing import Any

from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, TrainingSAE
from sae_lens.config import HfDataset
from sae_lens.llm_sae_training_runner import LLMSaeEvaluator
from sae_lens.multi_sae_training_runner import (
    MultiSAEEvaluator,
    MultiSAETrainingRunner,
    MultiSAETrainingRunnerConfig,
)
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.activations_store import ActivationsStore
from typing_extensions import override

from sae_lens_gba.at_target import at_its_target
from sae_lens_gba.distributed.runner import LatentParallelRunner
from sae_lens_gba.runs.activation_pairs import give_pairs
from sae_lens_gba.runs.models import model_for
from sae_lens_gba.transcoder_config import GBATrainingTranscoderConfig


class TranscoderTrainingRunner(LanguageModelSAETrainingRunner):
    """Trains one transcoder from ``cfg.hook_name`` to ``cfg.sae.hook_name_out``.

    Arguments are those of SAELens' runner. Cached activations are of both hooks, see
    `join_cached_activations`.

    Raises:
        ValueError: the configuration names no target, or a head.
    """

    @override
    def __init__(
        self,
        cfg: LanguageModelSAERunnerConfig[Any],
        override_dataset: HfDataset | None = None,
        override_model: Any = None,
        override_sae: TrainingSAE[Any] | None = None,
    ):
        target = require_target(cfg.sae, cfg.hook_head_index)
        with model_for(cfg, [cfg.hook_name, target], override_model) as model:
            super().__init__(cfg, override_dataset, model, override_sae)
        widths = _widths(cfg.sae, cfg.hook_name)
        self.target_store = give_pairs(self.activations_store, {cfg.hook_name: target}, widths)
        self.evaluator = _Evaluator(**vars(self.evaluator))


class LatentParallelTranscoderRunner(LatentParallelRunner, TranscoderTrainingRunner):
    """`TranscoderTrainingRunner` with a part of the latents and of the data."""

    @override
    def stores(self) -> list[ActivationsStore]:
        return [store for store in (self.activations_store, self.target_store) if store]


class _Evaluator(LLMSaeEvaluator[Any]):
    @override
    def __call__(
        self, sae: Any, data_provider: Any, activation_scaler: ActivationScaler
    ) -> dict[str, Any]:
        with at_its_target(sae, self.model, activation_scaler) as seen_there:
            return super().__call__(seen_there, data_provider, activation_scaler)


class TranscoderSetTrainingRunner(MultiSAETrainingRunner):
    """Trains several transcoders, such as all MLPs' of a model, in one pass over the data.

    ``cfg.hook_names`` are those of the inputs; each transcoder's configuration names its target.

    Raises:
        ValueError: a configuration names no target, or a head; or two name different targets for
            the same input.
    """

    @override
    def __init__(
        self,
        cfg: MultiSAETrainingRunnerConfig,
        override_dataset: HfDataset | None = None,
        override_model: Any = None,
        override_saes: dict[str, TrainingSAE[Any]] | None = None,
    ):
        target_of: dict[str, str] = {}
        widths: dict[str, int] = {}
        for name, sae in cfg.saes.items():
            hook = cfg.hook_names_per_sae[name]
            target = require_target(sae, cfg.hook_head_indices_per_sae[name])
            if target_of.setdefault(hook, target) != target:
                raise ValueError(
                    f"{name}: hook_name_out={target!r} is not possible: {hook} has the target "
                    f"{target_of[hook]!r} in this run; train one of them in another."
                )
            widths |= _widths(sae, hook)
        with model_for(cfg, [*target_of, *target_of.values()], override_model) as model:
            super().__init__(cfg, override_dataset, model, override_saes)
        give_pairs(self.activations_store, target_of, widths)
        self.evaluator = _SetEvaluator(**vars(self.evaluator))


class _SetEvaluator(MultiSAEEvaluator):
    @override
    def __call__(
        self,
        saes: dict[str, TrainingSAE[Any]],
        data_provider: Any,
        activation_scalers: dict[str, ActivationScaler],
        hook_names: dict[str, str],
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, sae in saes.items():
            with at_its_target(sae, self.model, activation_scalers[name]) as seen_there:
                found |= super().__call__(
                    {name: seen_there}, data_provider, activation_scalers, hook_names
                )
        return found


def require_target(sae: Any, head: int | None) -> str:
    """The hook of a transcoder's target; ValueError if its configuration names none."""
    if not isinstance(sae, GBATrainingTranscoderConfig):
        raise ValueError(
            f"architecture={sae.architecture()!r} is no transcoder: take 'gba_transcoder' or "
            "'gba_skip_transcoder', or one of SAELens' own runners."
        )
    if not sae.hook_name_out:
        raise ValueError(
            "hook_name_out='' is not possible: name the hook whose activations the transcoder is "
            "to predict, such as 'blocks.8.hook_mlp_out'."
        )
    if head is not None:
        raise ValueError(
            f"hook_head_index={head} is not possible: a transcoder reads all heads together."
        )
    return sae.hook_name_out


def _widths(sae: Any, hook_name: str) -> dict[str, int]:
    return {hook_name: sae.d_in, sae.hook_name_out: sae.d_out}
