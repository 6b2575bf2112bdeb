"""SAEBench's ``core`` evaluation (sae-bench 0.6.0) of a saved GBA SAE.

SAEBench wants older libraries than sae-lens-gba, so it needs a virtual environment of its own, and
no test runs this script. It can do without this package: a saved GBA SAE is a stock SAELens SAE.

    python -m venv saebench && . saebench/bin/activate
    pip install sae-bench==0.6.0 'pyarrow<21' && pip uninstall -y torchvision
    python experiments/evaluation/saebench_core.py demo_output \\
        --model FOLDER --dataset texts.jsonl

FOLDER is the model as a Hugging Face folder (the demo keeps one in its cache), and the text
file has a JSON object with a field "text" on each line.
"""

import argparse
import json

from datasets import load_dataset
from sae_bench.evals.core.eval_config import CoreEvalConfig
from sae_bench.evals.core.main import calculate_misc_metrics, run_evals
from sae_lens import SAE
from sae_lens.training.activations_store import ActivationsStore
from transformer_lens.model_bridge import TransformerBridge

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("sae_dir")
parser.add_argument("--model", required=True, help="Hugging Face folder of the model")
parser.add_argument("--dataset", required=True, help="JSON lines with a field text")
parser.add_argument("--batches", type=int, default=16, help="of 8 sequences")
args = parser.parse_args()

sae = SAE.load_from_disk(args.sae_dir)
# where SAEBench looks for them
sae.cfg.hook_name = sae.cfg.metadata.hook_name
sae.cfg.hook_layer = int(sae.cfg.hook_name.split(".")[1])
sae.cfg.hook_head_index = None
sae.cfg.architecture_str = sae.cfg.architecture()
model = TransformerBridge.boot_transformers(args.model, device="cpu")
texts = load_dataset("json", data_files=args.dataset, split="train")
store = ActivationsStore.from_sae(model, sae, texts, total_tokens=1)

metrics, of_latents = run_evals(
    sae,
    store,
    model,
    # without both featurewise settings SAEBench's core returns nothing
    CoreEvalConfig(
        batch_size_prompts=8,
        n_eval_reconstruction_batches=max(1, args.batches // 4),
        n_eval_sparsity_variance_batches=args.batches,
        compute_kl=True,
        compute_ce_loss=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
        compute_featurewise_weight_based_metrics=True,
    ),
    ignore_tokens={model.tokenizer.bos_token_id},
)
metrics["misc"] = calculate_misc_metrics(of_latents)
print(json.dumps(metrics, indent=2))
