"""Measure a saved SAE or transcoder: SAELens' evaluations, and sparse probing.

python examples/09_evaluate.py demo_output
python examples/09_evaluate.py demo_output --probe 5_hist_fig_ismale   # needs [probes]
"""

import argparse
import json
from pathlib import Path

from sae_lens import SAE
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.activations_store import ActivationsStore

from sae_lens_gba.at_target import at_its_target
from sae_lens_gba.sources import load_model_of, load_text

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("sae_dir", type=Path, nargs="?", default=Path("demo_output"))
parser.add_argument("--model", help="Hub name or folder; none: the SAE's own")
parser.add_argument("--dataset", help="text file or Hub name; none: what the SAE was trained on")
parser.add_argument("--batches", type=int, default=4, help="of text, for each measure")
parser.add_argument("--prompts", type=int, default=8, help="sequences a batch")
parser.add_argument("--probe", nargs="+", default=[], help="data sets of sae-probes")
args = parser.parse_args()

sae = SAE.load_from_disk(args.sae_dir)
model = load_model_of(sae, args.model)
texts = load_text(args.dataset, sae).dataset
store = ActivationsStore.from_sae(
    model, sae, dataset=texts, streaming=False, store_batch_size_prompts=args.prompts
)
cfg = EvalConfig(
    batch_size_prompts=args.prompts,
    n_eval_reconstruction_batches=args.batches,
    n_eval_sparsity_variance_batches=args.batches,
    compute_ce_loss=True,
    compute_l2_norms=True,
    compute_sparsity_metrics=True,
    compute_variance_metrics=True,
)
with at_its_target(sae, model) as seen_there:  # of an SAE, the SAE itself
    measured, _ = run_evals(seen_there, store, model, ActivationScaler(), eval_config=cfg)
print(json.dumps(measured, indent=2))
(args.sae_dir / "saelens_evaluation.json").write_text(json.dumps(measured, indent=2) + "\n")

if args.probe:
    from sae_lens_gba.evaluation.probing import probe

    for score in probe(args.sae_dir, args.probe, model=model):
        print(f"{score.dataset}, {score.k} latents: AUC {score.test_auc:.3f}")
