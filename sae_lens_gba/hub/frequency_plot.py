"""The plot on the model card: how often each latent should be active, and is."""

import logging
from pathlib import Path

from sae_lens_gba.neuron_groups import NeuronGroups

logger = logging.getLogger(__name__)


def save_frequency_plot(groups: NeuronGroups, path: Path, title: str) -> bool:
    """Draw target and measured frequency of each latent, by group, as a PNG.

    The same groups give the same bytes, with the same version of matplotlib.

    Returns:
        False, and no file, where matplotlib is not installed (``pip install
        "sae-lens-gba[plots]"``); the log says so.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning(
            "no frequency plot: matplotlib is not installed; pip install 'sae-lens-gba[plots]'."
        )
        return False
    # measured frequencies sorted inside each group: the shape of the spectrum is what is read
    by_frequency = groups.measured_frequency.sort(descending=True, stable=True).indices
    order = by_frequency[groups.group[by_frequency].sort(stable=True).indices]
    measured = groups.measured_frequency[order].double()
    figure = Figure(figsize=(8, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    alive = measured.nonzero().flatten()
    if len(alive):
        frequencies = measured[alive].tolist()
        axes.plot(
            alive, frequencies, ".", markersize=3, color="#3b76af", label="measured in training"
        )
    target = groups.target_frequency[order].double().tolist()
    axes.step(range(len(target)), target, where="mid", color="#d1603d", linewidth=2, label="target")
    axes.set_yscale("log")
    axes.set_xlabel("latent, by group, then by measured frequency")
    axes.set_ylabel("share of tokens on which it is active")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Software": None})
    return True
