"""Go on training an SAE: one of your own, or any jumprelu or standard SAE from the Hub.

    python examples/06_fine_tune.py                                     # a small SAE made here
    python examples/06_fine_tune.py --sae jbloom/GPT2-Small-SAEs-Reformatted blocks.8.hook_resid_pre

With a runner on a language model: save the training SAE and name its folder,
``to_training_sae(sae).save_model("start")`` and ``from_pretrained_path="start"`` in the config.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from sae_lens import SAE, StandardSAE, StandardSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_gba import to_training_sae

BATCH = 512

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--sae", nargs=2, metavar=("RELEASE", "ID"), help="on the Hub")
parser.add_argument("--target-l0", type=float, default=4)
parser.add_argument("--steps", type=int, default=1000)
args = parser.parse_args()

torch.manual_seed(0)
if args.sae is None:
    stock: SAE[Any] = StandardSAE(StandardSAEConfig(d_in=32, d_sae=128))
    stock.W_enc.data = stock.W_dec.data.T.clone()
else:
    stock = SAE.from_pretrained(*args.sae)
features = torch.nn.functional.normalize(torch.randn(stock.cfg.d_sae, stock.cfg.d_in), dim=1)


def activations() -> Iterator[torch.Tensor]:
    """Sparse mixtures of random features; put activations of your model here."""
    while True:
        yield ((torch.rand(BATCH, len(features)) < 4 / len(features)) * 1.5) @ features


sae = to_training_sae(stock, target_l0=args.target_l0)  # groups and targets follow from the L0
x = next(activations())
before = ((stock(x) - x) ** 2).sum(1).mean()
cfg = SAETrainerConfig(args.steps * BATCH, BATCH, lr=3e-3, lr_end=3e-3)
SAETrainer(cfg, sae, activations()).fit()
sae.save_inference_model("fine_tuned")
tuned = SAE.load_from_disk("fine_tuned")
l0 = (tuned.encode(x) > 0).sum(1).float().mean()
after = ((tuned(x) - x) ** 2).sum(1).mean()
print(f"L0 {l0:.2f} of {args.target_l0:g}; squared error {before:.3f} before, {after:.3f} after")
