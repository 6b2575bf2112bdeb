"""Plots of the committed benchmark results; reads JSON and measures nothing."""

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

RESULTS = Path(__file__).parent.parent / "results"


def plot_throughput(result: dict[str, Any], path: Path) -> None:
    """Step time against d_sae, one line an architecture, the bare encoder product dotted."""
    panels = sorted({(c["l0"], c["autocast"]) for c in result["cases"]}, key=lambda p: (p[1], p[0]))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5.2 * len(panels), 4.4), sharey=True, squeeze=False
    )
    for axis, (l0, autocast) in zip(axes[0], panels, strict=True):
        cases = [c for c in result["cases"] if (c["l0"], c["autocast"]) == (l0, autocast)]
        for name in cases[0]["architectures"]:
            widths = [c["d_sae"] for c in cases]
            seconds = [c["architectures"][name]["seconds"] for c in cases]
            ours = name.startswith("gba")
            style = ":" if name == "encoder product" else ("-" if ours else "--")
            color = "black" if name == "encoder product" else None
            axis.loglog(
                widths, seconds, style, marker="o", label=name, color=color, lw=2 if ours else 1.2
            )
        axis.set_xticks(widths, [f"{w:,}" for w in widths])
        axis.minorticks_off()
        axis.set_xlabel("d_sae")
        axis.set_title(f"L0 = {l0}, {'bf16 autocast' if autocast else 'float32'}")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("seconds a training step")
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    p = result["provenance"]
    figure.suptitle(
        f"d_in {result['d_in']}, batch {result['batch']}, {p['torch_threads']} threads, "
        f"torch {p['versions']['torch']}", fontsize=10,
    )  # fmt: skip
    figure.tight_layout()
    figure.savefig(path, dpi=110, bbox_inches="tight")


def plot_comparison(result: dict[str, Any], path: Path) -> None:
    """Recovery and reconstruction against samples and CPU time; means over seeds."""
    batch = result["config"]["batch_size"]
    panels = (
        ("mcc", "steps"),
        ("f1", "steps"),
        ("explained_variance", "steps"),
        ("mcc", "seconds"),
    )
    figure, axes = plt.subplots(1, len(panels), figsize=(17, 4.2))
    for method in dict.fromkeys(row["method"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["method"] == method]
        by_step = [
            [r for r in rows if r["steps"] == steps] for steps in sorted({r["steps"] for r in rows})
        ]
        by_step = [group for group in by_step if len(group) == len(result["config"]["seeds"])]
        for axis, (field, against) in zip(axes, panels, strict=True):
            x = [fmean(row[against] for row in group) for group in by_step]
            if against == "steps":
                x = [steps * batch / 1e6 for steps in x]
            y = [fmean(row[field] for row in group) for group in by_step]
            style = "-" if method.startswith("gba") else "--"
            axis.plot(x, y, style, marker="o", label=method)
            axis.set_xlabel("million samples" if against == "steps" else "CPU seconds, one thread")
            axis.set_ylabel(field.replace("_", " "))
            axis.grid(alpha=0.3)
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.suptitle(
        f"{result['config']['n_features']} features in {result['config']['d_in']} dimensions, "
        f"L0 {result['config']['l0']}, seeds {result['config']['seeds']}", fontsize=10,
    )  # fmt: skip
    figure.tight_layout()
    figure.savefig(path, dpi=110, bbox_inches="tight")


def plot_language_model(result: dict[str, Any], path: Path) -> None:
    """Frontier, consistency over seeds, sparse probing."""
    config, methods = result["config"], [row["method"] for row in result["consistency"]]
    figure, axes = plt.subplots(1, 4, figsize=(17, 4.2))
    for method in methods:
        own = [row for row in result["rows"] if row["method"] == method]
        points = [
            [row for row in own if row["asked_l0"] == l0]
            for l0 in sorted({row["asked_l0"] for row in own})
        ]
        for axis, field in zip(axes, ("explained_variance", "ce_loss_recovered"), strict=False):
            x = [fmean(row["l0"] for row in group) for group in points]
            y = [fmean(row[field] for row in group) for group in points]
            axis.plot(x, y, "-" if method == "gba" else "--", marker="o", label=method)
            axis.set_xlabel("L0")
            axis.set_ylabel(field.replace("_", " "))
            axis.grid(alpha=0.3)
            axis.margins(0.3)
    axes[0].legend(frameon=False)
    consistency = {
        "share MCS > 0.9": [row["share_mcs_above_09"] for row in result["consistency"]],
        "PW-MCC": [row["pw_mcc"] for row in result["consistency"]],
    }
    _bars(axes[2], methods, consistency, "between seeds")
    if result["probing"]:
        probing = {
            f"k = {k}": [
                fmean(r["test_auc"] for r in result["probing"] if (r["method"], r["k"]) == (m, k))
                for m in methods
            ]
            for k in config["probing_ks"]
        }
        _bars(axes[3], methods, probing, "mean test AUC of sparse probes")
        axes[3].set_ylim(bottom=0.5)
    else:
        axes[3].set_axis_off()
    figure.suptitle(
        f"{config['hook_name']}, d_sae {config['d_sae']}, {config['steps']} steps of "
        f"{config['batch_size']}, seeds {config['seeds']}", fontsize=10,
    )  # fmt: skip
    figure.tight_layout()
    figure.savefig(path, dpi=110, bbox_inches="tight")


def _bars(axis: Axes, names: list[str], groups: dict[str, list[float]], title: str) -> None:
    width = 0.8 / len(groups)
    for i, (label, heights) in enumerate(groups.items()):
        places = [n + width * (i - (len(groups) - 1) / 2) for n in range(len(names))]
        axis.bar(places, heights, width, label=label)
    axis.set_xticks(range(len(names)), names, fontsize=8)
    axis.set_title(title, fontsize=9)
    axis.set_ylim(top=1.2 * axis.get_ylim()[1])  # room for the legend
    axis.legend(frameon=False, fontsize=8, loc="upper right", ncols=len(groups))
    axis.grid(axis="y", alpha=0.3)


PLOTS = {
    "training_throughput": plot_throughput,
    "architecture_comparison": plot_comparison,
    "architecture_comparison_large": plot_comparison,
    "language_model_comparison": plot_language_model,
    "language_model_comparison_mlp": plot_language_model,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    folder = parser.parse_args().results
    for name, plot in PLOTS.items():
        source = folder / f"{name}.json"
        if source.is_file():
            plot(json.loads(source.read_text()), source.with_suffix(".png"))


if __name__ == "__main__":
    main()
