"""Look at a trained SAE: an HTML page, and its data beside it.

    sae-lens-gba demo --output demo_output
    python examples/08_report.py demo_output

The same on the command line, with more settings: ``sae-lens-gba report demo_output``.
"""

import argparse
from pathlib import Path

from sae_lens_gba.report import Report, ReportConfig, write_report

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("sae_dir", type=Path, nargs="?", default=Path("demo_output"))
parser.add_argument("--compare", type=Path, nargs="*", default=[])
parser.add_argument("--model", help="folder or hub name; none: the SAE's own")
parser.add_argument("--dataset", help="text file; none: what the SAE was trained on")
parser.add_argument("--tokens", type=int, default=50_000)
args = parser.parse_args()

page = write_report(
    args.sae_dir,
    compare=args.compare,
    model=args.model,
    dataset=args.dataset,
    cfg=ReportConfig(n_tokens=args.tokens, n_latents=40),
)
print(f"open {page} in a browser")

# everything in the page is in the data beside it
report = Report.load(page.with_suffix(".json"))
for sae in report.saes:
    m = sae.metrics
    print(f"{sae.label}: explained variance {m.explained_variance}, L0 {m.l0}, dead {m.dead}")
for detail in report.saes[0].details[:5]:
    strongest = detail.top[0]
    print(f"latent {detail.latent} fires most on {strongest.tokens[strongest.focus]!r}")
