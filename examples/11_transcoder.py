"""Train a transcoder of each MLP of a language model, all in one pass over the text.

    python examples/11_transcoder.py --model gpt2 --dataset NeelNanda/pile-10k

One alone, as a command: ``sae-lens-gba train --architecture gba_skip_transcoder --hook-name
blocks.8.ln2.hook_normalized --hook-name-out blocks.8.hook_mlp_out ...``.
"""

import argparse
from typing import Any

import torch
from sae_lens import SAE, LoggingConfig
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunnerConfig
from transformer_lens.model_bridge import TransformerBridge

from sae_lens_gba import (
    GBATrainingSkipTranscoderConfig,
    TranscoderSetTrainingRunner,
    export_for_circuit_tracer,
)
from sae_lens_gba.sources import load_text

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="gpt2", help="Hub name or folder")
parser.add_argument("--dataset", default="NeelNanda/pile-10k", help="Hub name or text file")
parser.add_argument("--d-sae", type=int, default=16_384)
parser.add_argument("--target-l0", type=float, default=32)
parser.add_argument("--tokens", type=int, default=20_000_000)
parser.add_argument("--batch", type=int, default=4096, help="tokens a step")
parser.add_argument("--context", type=int, default=128, help="tokens a sequence")
args = parser.parse_args()

torch.manual_seed(0)
steps = args.tokens // args.batch
device = "cuda" if torch.cuda.is_available() else "cpu"
model: Any = TransformerBridge.boot_transformers(args.model, device=device)
layers = range(model.cfg.n_layers)
cfg = MultiSAETrainingRunnerConfig(
    saes={
        f"layer_{i}": GBATrainingSkipTranscoderConfig(
            d_in=model.cfg.d_model, d_sae=args.d_sae, target_l0=args.target_l0,
            l0_warm_up_steps=steps, hook_name_out=f"blocks.{i}.hook_mlp_out", device=device,
        )
        for i in layers
    },
    hook_names={f"layer_{i}": f"blocks.{i}.mlp.hook_in" for i in layers},
    model_name=args.model, dataset_path=args.dataset, context_size=args.context,
    exclude_special_tokens=True, training_tokens=args.tokens, train_batch_size_tokens=args.batch,
    n_batches_in_buffer=64, lr=5e-3, lr_decay_steps=steps // 4,
    logger=LoggingConfig(log_to_wandb=False), device=device, output_path="transcoders",
    checkpoint_path=None,
)  # fmt: skip
TranscoderSetTrainingRunner(cfg, load_text(args.dataset).dataset, model).run()
for i in layers:
    transcoder = SAE.load_from_disk(f"transcoders/layer_{i}")
    l0 = transcoder.cfg.metadata.l0
    print(f"{type(transcoder).__name__} of layer {i}, calibrated to L0 {l0:.2f}")
folder = export_for_circuit_tracer([f"transcoders/layer_{i}" for i in layers], "for_circuit_tracer")
print(f"upload {folder} to a repo, and circuit-tracer loads it by the repo's name")
