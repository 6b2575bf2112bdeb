"""Training and measuring the demo's SAE, with SAELens' own runner."""

from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
from datasets import Dataset
from sae_lens import (
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
)
from transformer_lens.model_bridge import TransformerBridge

from sae_lens_gba.config import GBATrainingSAEConfig
from sae_lens_gba.demo.activations import activations_on, contexts
from sae_lens_gba.demo.config import DemoConfig
from sae_lens_gba.demo.model import MODEL_NAME
from sae_lens_gba.demo.text import DATASET_NAME
from sae_lens_gba.training_sae import GBATrainingSAE

D_MODEL = 576
CONTEXT_SIZE = 128
TRAIN_BATCH = 512


@dataclass(frozen=True)
class HeldOut:
    """Text that training did not see, and what model and SAE make of it; BOS left out.

    Attributes:
        inputs: of the SAE, shape (n, d_in).
        acts: of the SAE, shape (n, d_sae).
        tokens: token ids, shape (n_prompts, context_size), BOS included.
        tokenizer: of the model.
    """

    inputs: torch.Tensor
    acts: torch.Tensor
    tokens: torch.Tensor
    tokenizer: Any


def runner_config(cfg: DemoConfig) -> LanguageModelSAERunnerConfig[GBATrainingSAEConfig]:
    """A SAELens runner config like any other, with a GBA config where another was."""
    steps = cfg.training_tokens // TRAIN_BATCH
    return LanguageModelSAERunnerConfig(
        sae=GBATrainingSAEConfig(
            d_in=D_MODEL,
            d_sae=cfg.d_sae,
            target_l0=cfg.target_l0,
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


def train(
    cfg: LanguageModelSAERunnerConfig[GBATrainingSAEConfig],
    model: TransformerBridge,
    texts: Dataset,
) -> GBATrainingSAE:
    """Train on ``texts`` and save to ``cfg.output_path``."""
    # a bridge is all that the runner needs of a model, but no HookedRootModule
    runner = LanguageModelSAETrainingRunner(
        cfg,
        override_model=model,  # type: ignore[arg-type]
        override_dataset=texts,
    )
    sae = runner.run()
    sae.eval()
    return sae


@torch.no_grad()
def read_held_out(
    sae: GBATrainingSAE, model: TransformerBridge, texts: Dataset, hook_name: str, n_tokens: int
) -> HeldOut:
    """Run model and SAE over the beginnings of ``texts``, ``n_tokens`` tokens in all."""
    beginnings = (contexts(model.tokenizer, text, CONTEXT_SIZE)[:1] for text in texts["text"])
    n_prompts = -(-n_tokens // CONTEXT_SIZE)
    tokens = torch.tensor(list(islice(chain.from_iterable(beginnings), n_prompts)))
    inputs = torch.cat([part[hook_name] for part in activations_on(model, tokens, [hook_name])])
    acts = torch.cat([sae.encode(part) for part in inputs.split(2048)])
    return HeldOut(inputs, acts, tokens, model.tokenizer)


@torch.no_grad()
def report(sae: GBATrainingSAE, held_out: HeldOut) -> str:
    """What was asked and what was got, on held-out text."""
    x, acts = held_out.inputs, held_out.acts
    error = (x - sae.decode(acts)).pow(2).sum()
    explained = 1 - error / (x - x.mean(dim=0)).pow(2).sum()
    frequency = (acts > 0).float().mean(dim=0)
    groups = sae.groups()
    lines = [
        "",
        f"held-out text, {len(x)} tokens:",
        f"  L0 asked            {float(groups.target_frequency.sum()):8.1f}",
        f"  L0 got              {float(frequency.sum()):8.1f}",
        f"  explained variance  {float(explained):8.3f}",
        f"  never active        {int((frequency == 0).sum()):8d} of {sae.cfg.d_sae} latents",
        "",
        "  group  latents  target frequency  measured",
    ]
    for row in groups.summary():
        measured = frequency[groups.group == row["group"]].mean()
        lines.append(
            f"  {row['group']:5d}  {row['size']:7d}  {row['target_frequency']:16.5f}"
            f"  {float(measured):8.5f}"
        )
    return "\n".join(lines) + "\n"
