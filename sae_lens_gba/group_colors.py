"""One colour a group, the same in every chart."""

from plotly.colors import sample_colorscale


def group_color(group: int, n_groups: int) -> str:
    """From the most active group (warm) to the least (cool), readable on white and black.

    Returns:
        Such as "#c82803", which CSS, plotly and matplotlib take.
    """
    at = 0.88 - 0.76 * (group / (n_groups - 1) if n_groups > 1 else 1.0)
    (rgb,) = sample_colorscale("Turbo", [at], colortype="tuple")
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in rgb)
