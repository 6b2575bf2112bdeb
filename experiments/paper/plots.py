"""Plots of the paper's experiments.

python -m experiments.paper.plots [folder of results]
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.lab.plots import Plot, Rows, group_by, mean_of, plot_results, values
from experiments.lab.results import mean_and_deviation

# share of features, from the paper's table: FRR(0.8), FRR(0.9); it does not say which
# frequencies its "wrong" ones are
PAPER = {
    "topk_20": (1.0, 0.984),
    "topk_30": (0.984, 0.242),
    "topk_50": (0.945, 0.234),
    "gba_full_range": (1.0, 1.0),
}


def plot_imbalanced_set(result: dict[str, Any]) -> Figure:
    """FRR of each method, with the paper's numbers; and FRR(0.8) in the course of training."""
    last = [row for row in result["rows"] if row["steps"] == result["config"]["at_steps"][-1]]
    by_method = group_by(last, "method")
    figure = Figure(figsize=(15, 4.6), layout="tight")
    axes = figure.subplots(1, 3, width_ratios=(1, 1, 1.2))
    names = [name for (name,) in by_method]
    places = list(range(len(names)))[::-1]
    for which, (axis, field) in enumerate(zip(axes, ("frr_08", "frr_09"), strict=False)):
        stats = [mean_and_deviation(values(rows, field)) for rows in by_method.values()]
        mean, deviation = (100 * np.array(column) for column in zip(*stats, strict=True))
        axis.barh(places, mean, xerr=deviation, color="#4878a8", ecolor="#222222", label="here")
        known = [
            (100 * PAPER[n][which], y) for y, n in zip(places, names, strict=True) if n in PAPER
        ]
        axis.plot(*zip(*known, strict=True), "D", color="#d1495b", label="paper")
        axis.set_xlim(0, 105)
        axis.set_xlabel(f"FRR({'0.8' if which == 0 else '0.9'}), % of features")
    l0 = [mean_of(rows, "l0") for rows in by_method.values()]
    axes[0].set_yticks(places, [f"{n}  (L0 {x:.0f})" for n, x in zip(names, l0, strict=True)])
    axes[1].set_yticks(places, [])
    axes[1].legend(loc="lower right")
    _recovery_over_steps(axes[2], result["rows"])
    figure.suptitle("Imbalanced set: rows with 3 and with 20 active features")
    return figure


def _recovery_over_steps(axis: Axes, rows: Rows) -> None:
    for i, ((method,), own) in enumerate(group_by(rows, "method").items()):
        by_step = group_by(own, "steps")
        frr = [100 * mean_of(group, "frr_08") for group in by_step.values()]
        style = "--" if i >= 10 else "-"  # matplotlib has ten colours
        axis.plot([step for (step,) in by_step], frr, style, marker=".", label=method)
    axis.set_xlabel("training steps")
    axis.set_ylabel("FRR(0.8), % of features")
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), handlelength=3)


def plot_neuron_resonance(result: dict[str, Any]) -> Figure:
    """Heat maps of FRR(0.8) and of the mean best cosine over (p / f, d)."""
    rows = result["rows"]
    figure = Figure(figsize=(11, 4.2), layout="tight")
    axes = figure.subplots(1, 2)
    for axis, field, title in (
        (axes[0], "frr_08", "FRR(0.8)"),
        (axes[1], "mean_best_cosine", "mean best |cosine|"),
    ):
        image = _heat_map(axis, rows, field)
        axis.set_title(title)
        figure.colorbar(image, ax=axis)
    n, s = result["config"]["n_features"], result["config"]["sparsity"]
    figure.suptitle(
        f"Neuron resonance, n={n}, s={s}: solid p = f, dashed upper end of Theorem 6.1's band "
        "(constants taken as 1)",
        fontsize=10,
    )
    return figure


def _heat_map(axis: Axes, rows: Rows, field: str) -> Any:
    dimensions = sorted({row["d"] for row in rows})
    targets = sorted({row["p"] for row in rows})
    cells = group_by(rows, "d", "p")
    grid = [[mean_of(cells[d, p], field) for p in targets] for d in dimensions]
    image = axis.imshow(grid, origin="lower", aspect="auto", vmin=0, vmax=1, cmap="viridis")
    axis.set_xticks(range(len(targets)), [f"{p:.3g}" for p in targets], rotation=45, fontsize=8)
    axis.set_yticks(range(len(dimensions)), [str(d) for d in dimensions])
    axis.set_xlabel("target frequency p of the latents")
    axis.set_ylabel("dimension d")

    def column(p: float) -> float:
        return float(np.interp(np.log(p), np.log(targets), range(len(targets))))

    axis.axvline(column(rows[0]["f"]), color="white", linewidth=2)
    upper = [column(cells[d, targets[0]][0]["band"][1]) for d in dimensions]
    axis.plot(upper, range(len(dimensions)), "w--", linewidth=1.5)
    return image


def plot_group_ablation(result: dict[str, Any]) -> Figure:
    """Loss, L0 and FRR over the number of groups, a line a highest frequency and sizing."""
    figure = Figure(figsize=(16, 3.8), layout="tight")
    axes = figure.subplots(1, 4)
    fields = (
        ("loss", "squared error"),
        ("l0", "L0"),
        ("frr_08", "FRR(0.8)"),
        ("frr_09", "FRR(0.9)"),
    )
    colours = dict(
        zip(result["config"]["highest"], ("#4878a8", "#e09f3e", "#d1495b"), strict=False)
    )
    one_group = [row for row in result["rows"] if row["n_groups"] == 1]
    for sizing, style in (("equal", "o-"), ("power_law", "s--")):
        several = [row for row in result["rows"] if row["group_sizing"] == sizing]
        shared = several + (one_group if sizing == "power_law" else [])
        for (highest,), rows in group_by(shared, "highest_target_frequency").items():
            by_k = sorted(group_by(rows, "n_groups").items())
            for axis, (field, title) in zip(axes, fields, strict=True):
                stats = [mean_and_deviation(values(group, field)) for _, group in by_k]
                mean, deviation = zip(*stats, strict=True)
                label = f"HTF {highest}, {sizing}"
                k = [k for (k,), _ in by_k]
                axis.errorbar(k, mean, deviation, fmt=style, color=colours[highest], label=label)
                axis.set_title(title)
                axis.set_xscale("log")
                axis.set_xticks(result["config"]["n_groups"], result["config"]["n_groups"])
                axis.set_xlabel("groups K")
    axes[1].set_yscale("log")
    axes[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), handlelength=3)
    return figure


def plot_language_model(result: dict[str, Any]) -> Figure:
    """Loss against L0, explained variance against L0, and consistency over seeds."""
    hooks = list(group_by(result["rows"], "hook_name"))
    figure = Figure(figsize=(14, 4.2 * len(hooks)), layout="tight")
    grid = figure.subplots(len(hooks), 3, squeeze=False)
    for axes, (hook,) in zip(grid, hooks, strict=True):
        here = [row for row in result["rows"] if row["hook_name"] == hook]
        for (method,), rows in group_by(here, "method").items():
            points = sorted(group_by(rows, "setting").values(), key=lambda g: mean_of(g, "l0"))
            l0 = [mean_of(group, "l0") for group in points]
            for axis, field in zip(axes, ("loss", "ce_loss_recovered"), strict=False):
                axis.plot(l0, [mean_of(g, field) for g in points], "o-", label=method)
                axis.set_xscale("log")
                axis.set_xticks(result["config"]["l0"], map(str, result["config"]["l0"]))
                axis.minorticks_off()
                axis.set_xlabel("L0")
                axis.set_ylabel(field.replace("_", " "))
        for row in (r for r in result["consistency"] if r["hook_name"] == hook):
            axes[2].plot(row["top_shares"], row["share"], "o-", label=row["method"])
        axes[0].set_yscale("log")
        axes[0].set_title(hook, fontsize=9)
        axes[0].legend(fontsize=7)
        axes[2].set_xlabel("top share of latents, by largest activation")
        axes[2].set_ylabel("share with MCS > 0.9")
        axes[2].set_ylim(0, 1)
    return figure


PLOTS: dict[str, Plot] = {
    "01_imbalanced_set": plot_imbalanced_set,
    "01_imbalanced_set_longer": plot_imbalanced_set,
    "01_imbalanced_set_unit_norm": plot_imbalanced_set,
    "02_neuron_resonance": plot_neuron_resonance,
    "02_neuron_resonance_wide": plot_neuron_resonance,
    "03_group_ablation": plot_group_ablation,
    "04_language_model": plot_language_model,
}


if __name__ == "__main__":
    plot_results(PLOTS)
