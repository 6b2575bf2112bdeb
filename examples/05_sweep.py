"""Sweep L0 and seeds in one run: the model runs once for all SAEs (MultiSAETrainingRunner).

python examples/05_sweep.py --model gpt2 --dataset NeelNanda/pile-10k
"""

import argparse
from typing import Any

import torch
from sae_lens import SAE, LoggingConfig
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunner, MultiSAETrainingRunnerConfig
from transformer_lens.model_bridge import TransformerBridge

from sae_lens_gba import GBATrainingSAEConfig
from sae_lens_gba.metrics.seed_consistency import shares_consistent
from sae_lens_gba.sources import load_text

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="gpt2", help="Hub name or folder")
parser.add_argument("--dataset", default="NeelNanda/pile-10k", help="Hub name or text file")
parser.add_argument("--hook", default="blocks.8.hook_resid_post")
parser.add_argument("--l0s", type=float, nargs="+", default=[16, 32, 64])
parser.add_argument("--seeds", type=int, default=2)
parser.add_argument("--d-sae", type=int, default=8192)
parser.add_argument("--tokens", type=int, default=20_000_000)
parser.add_argument("--batch", type=int, default=4096)
parser.add_argument("--context", type=int, default=128, help="tokens a sequence")
args = parser.parse_args()

torch.manual_seed(0)
steps = args.tokens // args.batch
model: Any = TransformerBridge.boot_transformers(args.model)
# SAEs are made one after another from one random generator: each has weights of its own
saes = {
    f"l0_{l0:g}_seed_{seed}": GBATrainingSAEConfig(
        d_in=model.cfg.d_model, d_sae=args.d_sae, target_l0=l0, l0_warm_up_steps=steps
    )
    for l0 in args.l0s
    for seed in range(args.seeds)
}
cfg = MultiSAETrainingRunnerConfig(
    saes=saes, hook_names=args.hook, model_name=args.model, model_from_pretrained_kwargs={},
    dataset_path=args.dataset, context_size=args.context, training_tokens=args.tokens,
    train_batch_size_tokens=args.batch, n_batches_in_buffer=64,
    exclude_special_tokens=True, lr=5e-3, lr_decay_steps=steps // 4,
    logger=LoggingConfig(log_to_wandb=False), output_path="sweep", checkpoint_path=None,
)  # fmt: skip
texts = load_text(args.dataset).dataset
MultiSAETrainingRunner(cfg, override_model=model, override_dataset=texts).run()

for l0 in args.l0s:
    first, *others = (SAE.load_from_disk(f"sweep/l0_{l0:g}_seed_{i}") for i in range(args.seeds))
    print(f"L0 asked {l0:g}, calibrated to {first.cfg.metadata.l0:.2f}")
    for other in others:
        (share,) = shares_consistent(first.W_dec, other.W_dec)
        print(f"  found again with another seed (MCS > 0.9): {share:.1%} of the latents")
