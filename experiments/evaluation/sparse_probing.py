"""Sparse probing of a saved SAE with sae-probes 0.4.2, the benchmark that SAEBench uses.

A model's activations on whole data sets take long, so no test runs this script; what it calls is
tested in tests/evaluation. sae-probes asks for xgboost, whose usual wheel brings a GPU library of
469 MB; so:

    pip install 'sae-lens-gba[probes]'
    pip install --no-deps sae-probes==0.4.2
    python -m experiments.evaluation.sparse_probing demo_output

Scores compare with published ones only at the benchmark's --max-seq-len of 1024.
"""

import argparse

from sae_lens_gba.evaluation.probing import BENCHMARK_SEQUENCE_LENGTH, probe

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("sae_dir", nargs="?", default="demo_output")
parser.add_argument("--datasets", nargs="+", default=["114_nyc_borough_Manhattan"])
parser.add_argument("--ks", type=int, nargs="+", default=[1, 16])
parser.add_argument("--model", help="folder or hub name; none: the SAE's own")
parser.add_argument("--max-seq-len", type=int, default=BENCHMARK_SEQUENCE_LENGTH)
args = parser.parse_args()

scores = probe(
    args.sae_dir, args.datasets, ks=args.ks, model=args.model, max_seq_len=args.max_seq_len
)
print(f"{'data set':32} {'k':>4} {'AUC':>6} {'accuracy':>9}  latents")
for s in scores:
    print(f"{s.dataset:32} {s.k:4} {s.test_auc:6.3f} {s.test_accuracy:9.3f}  {s.latents[:4]}")
