"""Train a GBA SAE on a language model, with SAELens' own runner.

python examples/02_language_model.py --model gpt2 --dataset NeelNanda/pile-10k
"""

import argparse
from typing import Any

import torch
from sae_lens import (
    SAE,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
)
from transformer_lens.model_bridge import TransformerBridge

from sae_lens_gba import GBATrainingSAEConfig
from sae_lens_gba.sources import load_text

OUTPUT = "my_sae"

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="gpt2", help="Hub name or folder")
parser.add_argument("--dataset", default="NeelNanda/pile-10k", help="Hub name or text file")
parser.add_argument("--hook", default="blocks.8.hook_resid_post")
parser.add_argument("--d-sae", type=int, default=16_384)
parser.add_argument("--target-l0", type=float, default=32)
parser.add_argument("--tokens", type=int, default=20_000_000)
parser.add_argument("--batch", type=int, default=4096, help="tokens a step")
parser.add_argument("--context", type=int, default=128, help="tokens a sequence")
args = parser.parse_args()

torch.manual_seed(0)  # the runner's own seed does not reach the weights
steps = args.tokens // args.batch
device = "cuda" if torch.cuda.is_available() else "cpu"
model: Any = TransformerBridge.boot_transformers(args.model, device=device)
cfg = LanguageModelSAERunnerConfig(
    sae=GBATrainingSAEConfig(
        d_in=model.cfg.d_model,
        d_sae=args.d_sae,
        target_l0=args.target_l0,
        l0_warm_up_steps=steps,
        device=device,
    ),
    model_name=args.model, model_from_pretrained_kwargs={}, hook_name=args.hook,
    dataset_path=args.dataset, context_size=args.context, is_dataset_tokenized=False,
    exclude_special_tokens=True,  # <s> has many times the norm of other tokens
    training_tokens=args.tokens, train_batch_size_tokens=args.batch,
    n_batches_in_buffer=64, n_batches_for_norm_estimate=5,
    lr=5e-3, lr_decay_steps=steps // 4,
    logger=LoggingConfig(log_to_wandb=False),
    device=device, output_path=OUTPUT, checkpoint_path=None,
)  # fmt: skip
texts = load_text(args.dataset).dataset
LanguageModelSAETrainingRunner(cfg, override_model=model, override_dataset=texts).run()
sae = SAE.load_from_disk(OUTPUT)
print(f"{type(sae).__name__}, {sae.cfg.d_sae} latents: calibrated to L0 {sae.cfg.metadata.l0:.2f}")
