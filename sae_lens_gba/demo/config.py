"""Settings of the demo, and what SAELens' runner makes of them."""

from dataclasses import dataclass
from pathlib import Path

from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig

from sae_lens_gba.config import GBATrainingSAEConfig
from sae_lens_gba.demo.model import MODEL_NAME
from sae_lens_gba.demo.text import DATASET_NAME

D_MODEL = 576
CONTEXT_SIZE = 128
TRAIN_BATCH = 512


@dataclass(frozen=True)
class DemoConfig:
    """Settings of the demo.

    Attributes:
        output: folder for the trained SAE; must not exist, or be an earlier demo's.
        cache: folder for the de-quantised model; None is the user's cache.
        hook_name: TransformerLens hook point the SAE is trained on.
        d_sae: number of latents.
        target_l0: active latents a token to train towards.
        training_tokens: tokens to train on.
        snippets_tokens: held-out tokens to measure on and to take snippets from.
        seed: of weights, data order and the latents shown.
    """

    output: Path = Path("demo_output")
    cache: Path | None = None
    hook_name: str = "blocks.8.hook_resid_post"
    d_sae: int = 2304
    target_l0: float = 32.0
    training_tokens: int = 200_000
    snippets_tokens: int = 32_768
    seed: int = 0


def runner_config(cfg: DemoConfig) -> LanguageModelSAERunnerConfig[GBATrainingSAEConfig]:
    """A SAELens runner config like any other, with a GBA config where another was."""
    steps = cfg.training_tokens // TRAIN_BATCH
    return LanguageModelSAERunnerConfig(
        sae=GBATrainingSAEConfig(
            d_in=D_MODEL,
            d_sae=cfg.d_sae,
            target_l0=cfg.target_l0,
            l0_warm_up_steps=steps,
            normalize_activations="expected_average_only_in",
        ),
        model_name=MODEL_NAME,
        model_from_pretrained_kwargs={},
        hook_name=cfg.hook_name,
        dataset_path=DATASET_NAME,
        is_dataset_tokenized=False,
        streaming=False,
        context_size=CONTEXT_SIZE,
        prepend_bos=True,
        exclude_special_tokens=True,
        training_tokens=cfg.training_tokens,
        train_batch_size_tokens=TRAIN_BATCH,
        store_batch_size_prompts=16,
        n_batches_in_buffer=64,
        n_batches_for_norm_estimate=5,
        lr=1e-2,
        lr_decay_steps=steps // 4,
        seed=cfg.seed,
        logger=LoggingConfig(log_to_wandb=False),
        output_path=str(cfg.output),
        checkpoint_path=None,
    )
