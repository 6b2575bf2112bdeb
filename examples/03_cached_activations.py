"""Run the model once, keep its activations on disk, and train on them as often as you like.

    python examples/03_cached_activations.py --model gpt2 --dataset NeelNanda/pile-10k

Float32 takes 4 bytes x d_in a token: 3 GB for a million tokens of GPT-2.
"""

import argparse
from typing import Any

import torch
from sae_lens import (
    CacheActivationsRunner,
    CacheActivationsRunnerConfig,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
)  # fmt: skip
from transformers import AutoConfig

from sae_lens_gba import GBATrainingSAEConfig, NeuronGroups
from sae_lens_gba.sources import load_text

CACHE = "activations"
parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="gpt2", help="Hub name or folder")
parser.add_argument("--dataset", default="NeelNanda/pile-10k", help="Hub name or text file")
parser.add_argument("--hook", default="transformer.h.8", help="a module of the Hugging Face model")
parser.add_argument("--tokens", type=int, default=1_000_000)
parser.add_argument("--context", type=int, default=128, help="tokens a sequence")
parser.add_argument("--l0s", type=float, nargs="+", default=[16, 32, 64])
parser.add_argument("--d-sae", type=int, default=16_384)
parser.add_argument("--batch", type=int, default=4096)
args = parser.parse_args()

d_in, steps = AutoConfig.from_pretrained(args.model).hidden_size, args.tokens // args.batch
shared: dict[str, Any] = {
    "model_name": args.model, "model_class_name": "AutoModelForCausalLM",
    "model_from_pretrained_kwargs": {}, "hook_name": args.hook, "dataset_path": args.dataset,
    "context_size": args.context, "training_tokens": args.tokens,
}  # fmt: skip
texts = load_text(args.dataset).dataset
cache = CacheActivationsRunnerConfig(
    **shared, d_in=d_in, model_batch_size=16, new_cached_activations_path=CACHE, dtype="float32",
    buffer_size_gb=min(2.0, args.tokens * d_in * 4 / 2**30 / 4),
)  # fmt: skip
CacheActivationsRunner(cache, override_dataset=texts).run()

for l0 in args.l0s:
    torch.manual_seed(0)
    folder = f"l0_{l0:g}"
    cfg = LanguageModelSAERunnerConfig(
        **shared, sae=GBATrainingSAEConfig(d_in, args.d_sae, target_l0=l0, l0_warm_up_steps=steps),
        use_cached_activations=True, cached_activations_path=CACHE, n_batches_in_buffer=64,
        is_dataset_tokenized=False, logger=LoggingConfig(log_to_wandb=False), checkpoint_path=None,
        train_batch_size_tokens=args.batch, lr=5e-3, lr_decay_steps=steps // 4, output_path=folder,
        exclude_special_tokens=True,
    )  # fmt: skip
    LanguageModelSAETrainingRunner(cfg, override_dataset=texts).run()
    print(f"L0 {float(NeuronGroups.load(folder).measured_frequency.sum()):.2f} of {l0:g}")
