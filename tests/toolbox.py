"""Tiny settings, data, models and training runs that the tests share."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens import LanguageModelSAERunnerConfig
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.synthetic import (
    LinearFiringProbabilityConfig,
    SyntheticModelConfig,
    SyntheticSAERunnerConfig,
)
from sae_lens.training.sae_trainer import SAETrainer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sae_lens_gba import (
    GBATrainingSAE,
    GBATrainingSAEConfig,
    GBATrainingTranscoder,
    GBATrainingTranscoderConfig,
)
from sae_lens_gba.registration import CLASSES

D_MODEL = 16
WORDS = [f"w{i}" for i in range(60)]
VOCABULARY = ["<s>", "<unk>", *WORDS]
HOOK = "blocks.0.hook_resid_post"
# of every run on a language model
TINY_RUN: dict[str, Any] = {
    "model_name": "tiny/random",
    "model_from_pretrained_kwargs": {},
    "dataset_path": "tiny/texts",
    "streaming": False,
    "context_size": 16,
    "training_tokens": 1536,
    "train_batch_size_tokens": 64,
    "store_batch_size_prompts": 4,
    "n_batches_in_buffer": 16,
    "logger": LoggingConfig(log_to_wandb=False),
    "checkpoint_path": None,
}
# of the train command on the tiny model
TRAIN_FLAGS = {
    "model_name": "tiny/random", "hook_name": HOOK, "d_sae": "64", "target-l0": "4",
    "n_groups": "4", "highest_target_frequency": "0.3", "training_tokens": "1536",
    "train_batch_size_tokens": "64", "context_size": "16", "store_batch_size_prompts": "4",
    "n_batches_in_buffer": "16", "streaming": "false", "log_to_wandb": "false",
    "calibration_samples": "1024", "device": "cpu",
}  # fmt: skip

Cache = Callable[..., Path]
Fit = Callable[..., tuple[Any, LanguageModelSAERunnerConfig[Any]]]
Train = Callable[..., int]


def mixture(
    seed: int, batch: int = 256, d_in: int = 16, n_features: int = 48, device: str = "cpu"
) -> Iterator[torch.Tensor]:
    """Endless batches of sparse non-negative mixtures of Gaussian features, plus a mean."""
    generator = torch.Generator().manual_seed(seed)
    dictionary = torch.randn(n_features, d_in, generator=torch.Generator().manual_seed(99))
    while True:
        fires = torch.rand(batch, n_features, generator=generator) < 0.05
        strength = 0.5 + torch.rand(batch, n_features, generator=generator)
        yield ((fires * strength) @ dictionary + 2.0).to(device)


def pairs(
    seed: int, d_out: int = 24, batch: int = 256, d_in: int = 16, **settings: Any
) -> Iterator[torch.Tensor]:
    """Batches of `mixture` with what an MLP makes of them beside it, in a unit of its own."""
    generator = torch.Generator().manual_seed(98)
    W_in = torch.randn(d_in, 64, generator=generator) / 4
    W_out = torch.randn(64, d_out, generator=generator)
    for x in mixture(seed, batch, d_in, **settings):
        yield torch.cat([x, (x @ W_in).relu() @ W_out + 5.0], dim=1)


def data_of(cfg: GBATrainingSAEConfig, seed: int) -> Iterator[torch.Tensor]:
    """What an SAE or transcoder of 16 dimensions is trained on, in the dtype of its weights."""
    batches = mixture(seed)
    if isinstance(cfg, GBATrainingTranscoderConfig):
        batches = pairs(seed, cfg.d_out or cfg.d_in)
    return (batch.to(getattr(torch, cfg.dtype)) for batch in batches)


def random_rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def tiny_config(architecture: str = "gba", **settings: Any) -> GBATrainingSAEConfig:
    config_class = CLASSES[architecture][1]
    if architecture != "gba":
        settings = {"d_out": 24, **settings}
    defaults: dict[str, Any] = {
        "d_in": 16,
        "d_sae": 64,
        "n_groups": 4,
        "highest_target_frequency": 0.3,
        "target_l0": 4.0,
        "adapt_every_n_steps": 5,
    }
    return config_class(**{**defaults, **settings})


def tiny_sae(**settings: Any) -> GBATrainingSAE:
    """An SAE or transcoder of `tiny_config`."""
    cfg = tiny_config(**settings)
    return CLASSES[cfg.architecture()][0](cfg)


def make_trainer(
    sae: Any,
    steps: int,
    data: Iterator[torch.Tensor] | None = None,
    batch: int = 256,
    **settings: Any,
) -> SAETrainer[Any, Any]:
    defaults: dict[str, Any] = {
        "total_training_samples": steps * batch,
        "train_batch_size_samples": batch,
        "lr": 1e-3,
        "lr_end": 1e-3,
        "n_batches_for_norm_estimate": 4,
    }
    cfg = SAETrainerConfig(**{**defaults, **settings})
    return SAETrainer(cfg, sae, data_of(sae.cfg, 1) if data is None else data)


def synthetic_runner_config(
    sae: Any, steps: int, batch: int, output: Path, **settings: Any
) -> SyntheticSAERunnerConfig[Any]:
    """Of SyntheticSAERunner on a small data model, without wandb and evaluations."""
    defaults: dict[str, Any] = {"eval_samples": 0, "checkpoint_path": None}
    # no two samples are equal: a threshold on many equal ones has them all or none
    model = SyntheticModelConfig(
        num_features=48,
        hidden_dim=sae.d_in,
        firing_probability=LinearFiringProbabilityConfig(0.4, 0.1),
        std_firing_magnitudes=0.1,
        seed=0,
    )
    return SyntheticSAERunnerConfig(
        synthetic_model=model,
        sae=sae,
        training_samples=steps * batch,
        batch_size=batch,
        output_path=str(output),
        logger=LoggingConfig(log_to_wandb=False),
        **{**defaults, **settings},
    )


def language_model_config(folder: Path, **settings: Any) -> LanguageModelSAERunnerConfig[Any]:
    """Of LanguageModelSAETrainingRunner on the tiny model and texts, into ``folder``."""
    defaults: dict[str, Any] = {
        **TINY_RUN,
        "hook_name": HOOK,
        "is_dataset_tokenized": False,
        "n_batches_for_norm_estimate": 2,
        "n_eval_batches": 1,
        "lr": 1e-3,
        "device": "cpu",
        "output_path": str(folder),
    }
    return LanguageModelSAERunnerConfig(**{**defaults, **settings})


def take_steps(trainer: SAETrainer[Any, Any], n: int) -> Any:
    output = None
    for _ in range(n):
        output = trainer.step(next(trainer.data_provider))
        trainer.n_training_steps += 1
    return output


def randomise(sae: GBATrainingSAE) -> GBATrainingSAE:
    """Random weights and biases everywhere: zeros would hide what a test looks for."""
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
            if name == "output_scale":
                parameter.abs_().add_(0.5)
        sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
        sae.b_enc.zero_()
        sae.set_bias(-torch.rand(sae.cfg.d_sae).to(sae.b_enc.dtype))
        sae.adapter.input_norm.fill_(3.0)
        if isinstance(sae, GBATrainingTranscoder):
            sae.target_norm.fill_(40.0)
    return sae


def save_tokenizer(folder: Path, vocabulary: list[str]) -> None:
    """A tokenizer whose tokens are words, "<s>" and "<unk>" first, as Hugging Face saves it."""
    words = models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", pad_token="<s>"
    ).save_pretrained(folder)


def save_tiny_llama(folder: Path, vocabulary: list[str], **settings: Any) -> LlamaForCausalLM:
    """A random Llama whose tokens are words, as a Hugging Face folder.

    Args:
        folder: to be written.
        vocabulary: of `save_tokenizer`.
        settings: of `LlamaConfig`; by default two layers of D_MODEL dimensions.
    """
    save_tokenizer(folder, vocabulary)
    defaults = {
        "vocab_size": len(vocabulary),
        "hidden_size": D_MODEL,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 64,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**defaults, **settings}))
    model.save_pretrained(folder)
    return model


def boot(folder: Path) -> Any:
    """A model's folder as TransformerLens 3 takes it; without it the test is skipped."""
    reason = "TransformerBridge is of TransformerLens 3"
    bridge = pytest.importorskip(
        "transformer_lens.model_bridge", reason=reason, exc_type=ImportError
    )
    return bridge.TransformerBridge.boot_transformers(str(folder), device="cpu")


def hooked_transformer(folder: Path) -> HookedTransformer:
    """A random model of TransformerLens, 2 and 3, with the tokenizer of `save_tiny_llama`."""
    torch.manual_seed(0)
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=D_MODEL, n_ctx=64, d_head=4, n_heads=4, d_mlp=32,
        d_vocab=len(VOCABULARY), act_fn="relu", seed=0,
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return HookedTransformer(cfg, tokenizer=tokenizer)


def random_texts(n: int = 300) -> Dataset:
    """Texts of 40 words."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(WORDS), (n, 40), generator=generator).tolist()
    return Dataset.from_dict({"text": [" ".join(WORDS[i] for i in row) for row in rows]})
