"""Plots of the benchmarks' results.

python -m experiments.benchmarks.plots [folder of results]
"""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.lab.plots import group_by, mean_of, plot_results, values
from experiments.lab.training import FROZEN, RANDOM


def plot_throughput(result: dict[str, Any]) -> Figure:
    """Step time against d_sae, one line an architecture, the bare encoder product dotted."""
    panels = sorted({(c["l0"], c["autocast"]) for c in result["cases"]}, key=lambda p: (p[1], p[0]))
    figure = Figure(figsize=(5.2 * len(panels), 4.4), layout="tight")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (l0, autocast) in zip(axes, panels, strict=True):
        cases = [c for c in result["cases"] if (c["l0"], c["autocast"]) == (l0, autocast)]
        for name in cases[0]["architectures"]:
            own = [c for c in cases if name in c["architectures"]]
            widths = [c["d_sae"] for c in own]
            seconds = [c["architectures"][name]["seconds"] for c in own]
            ours = name.startswith("gba")
            style = ":" if name == "encoder product" else ("-" if ours else "--")
            color = "black" if name == "encoder product" else None
            axis.loglog(
                widths, seconds, style, marker="o", label=name, color=color, lw=2 if ours else 1.2
            )
        axis.set_xticks([c["d_sae"] for c in cases], [f"{c['d_sae']:,}" for c in cases])
        axis.minorticks_off()
        axis.set_xlabel("d_sae")
        axis.set_title(f"L0 = {l0}, {'bf16 autocast' if autocast else 'float32'}")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds per training step")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    p, config = result["provenance"], result["config"]
    figure.suptitle(
        f"d_in {config['d_in']}, batch {config['batch']}, {p['torch_threads']} threads, "
        f"torch {p['versions']['torch']}", fontsize=10,
    )  # fmt: skip
    return figure


def plot_comparison(result: dict[str, Any]) -> Figure:
    """Recovery and reconstruction against CPU time; means over seeds."""
    config = result["config"]
    fields = ("mcc", "f1", "explained_variance")
    figure = Figure(figsize=(13, 4.2), layout="tight")
    axes = figure.subplots(1, len(fields))
    for (method,), rows in group_by(result["rows"], "method").items():
        by_step = [own for _, own in sorted(group_by(rows, "steps").items())]
        by_step = [own for own in by_step if len(own) == len(config["seeds"])]
        for axis, field in zip(axes, fields, strict=True):
            x = [mean_of(own, "seconds") for own in by_step]
            y = [mean_of(own, field) for own in by_step]
            style = "-" if method.startswith("gba") else "--"
            axis.plot(x, y, style, marker="o", label=method)
            axis.set_xlabel("CPU seconds, one thread")
            axis.set_ylabel(field.replace("_", " "))
            axis.grid(alpha=0.3)
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.suptitle(
        f"{config['n_features']} features in {config['d_in']} dimensions, "
        f"L0 {config['l0']}, seeds {config['seeds']}", fontsize=10,
    )  # fmt: skip
    return figure


def plot_language_model(result: dict[str, Any]) -> Figure:
    """Frontier, consistency over seeds, sparse probing."""
    config, methods = result["config"], values(result["consistency"], "method")
    of_method = group_by(result["rows"], "method")
    n_panels = 4 if result["probing"] else 3
    figure = Figure(figsize=(4.25 * n_panels, 4.2), layout="tight")
    axes = figure.subplots(1, n_panels)
    for method in (m for m in methods if m not in (FROZEN, RANDOM)):  # far below the others
        points = [own for _, own in sorted(group_by(of_method[method,], "asked_l0").items())]
        for axis, field in zip(axes, ("explained_variance", "ce_loss_recovered"), strict=False):
            x = [mean_of(own, "l0") for own in points]
            y = [mean_of(own, field) for own in points]
            axis.plot(x, y, "-" if method == "gba" else "--", marker="o", label=method)
            axis.set_xlabel("L0")
            axis.set_ylabel(field.replace("_", " "))
            axis.grid(alpha=0.3)
            axis.margins(0.3)
    axes[0].legend(frameon=False)
    consistency = {
        "share MCS > 0.9": values(result["consistency"], "share_mcs_above_09"),
        "PW-MCC": values(result["consistency"], "pw_mcc"),
    }
    _bars(axes[2], methods, consistency, "between seeds")
    if result["probing"]:
        scores = group_by(result["probing"], "method", "k")
        probing = {
            f"k = {k}": [mean_of(scores[method, k], "test_auc") for method in methods]
            for k in config["probing_ks"]
        }
        _bars(axes[3], methods, probing, "mean test AUC of sparse probes")
        axes[3].set_ylim(bottom=0.5)
    figure.suptitle(
        f"{config['hook_name']}, d_sae {config['d_sae']}, {config['steps']} steps of "
        f"{config['batch_size']}, seeds {config['seeds']}", fontsize=10,
    )  # fmt: skip
    return figure


def _bars(axis: Axes, names: list[str], groups: dict[str, list[float]], title: str) -> None:
    width = 0.8 / len(groups)
    for i, (label, heights) in enumerate(groups.items()):
        places = [n + width * (i - (len(groups) - 1) / 2) for n in range(len(names))]
        axis.bar(places, heights, width, label=label)
    axis.set_xticks(range(len(names)), names, fontsize=8, rotation=20)
    axis.set_title(title, fontsize=9)
    axis.set_ylim(top=1.2 * axis.get_ylim()[1])  # room for the legend
    axis.legend(frameon=False, fontsize=8, loc="upper right", ncols=len(groups))
    axis.grid(axis="y", alpha=0.3)


PLOTS = {
    "training_throughput": plot_throughput,
    "architecture_comparison": plot_comparison,
    "language_model_comparison": plot_language_model,
    "language_model_comparison_mlp": plot_language_model,
}


if __name__ == "__main__":
    plot_results(PLOTS)
