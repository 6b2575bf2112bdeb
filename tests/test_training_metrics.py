"""What is sent to wandb: curves stay small and whole, silent latents are no spike."""

from typing import Any

import numpy as np
import torch

from sae_lens_gba import GBATrainingSAE
from sae_lens_gba.training_metrics import MAX_POINTS, Curves, histograms
from tests.toolbox import tiny_config


def test_a_long_run_keeps_its_first_point_and_few_in_all() -> None:
    curves, n_sent = Curves(), 0
    for step in range(5000):
        curves.add(step, {"chart": {"a": float(step), "b": 0.0}})
        n_sent += sum(len(curves.step) for _ in curves.charts())
    assert curves.step[0] == 0
    assert curves.step[-1] >= 5000 - 2 * 5000 // MAX_POINTS
    assert MAX_POINTS // 2 <= len(curves.step) <= MAX_POINTS
    assert len(set(np.diff(curves.step))) == 1  # evenly over the run
    assert curves.lines["chart"]["a"] == [float(step) for step in curves.step]
    assert n_sent < 6 * 10 * MAX_POINTS  # by doubling, each a tenth more than the one before


def test_a_chart_has_every_line_at_every_step() -> None:
    curves = Curves()
    for step in (5, 10):
        curves.add(step, {"gba/of groups": {"one": step / 10, "two": 1.0}})
    (chart,) = curves.charts().values()
    rows: list[Any] = chart.table.data
    assert sorted(tuple(row) for row in rows) == [
        (5, "one", 0.5), (5, "two", 1.0), (10, "one", 1.0), (10, "two", 1.0)
    ]  # fmt: skip
    assert curves.charts() == {}  # nothing new


def test_silent_latents_are_in_no_histogram_of_logarithms() -> None:
    sae = GBATrainingSAE(tiny_config())
    n = sae.cfg.d_sae
    sae.adapter.frequency.copy_(torch.where(torch.arange(n) < n // 2, 0.1, 0.0))
    found = histograms(sae.adapter, sae.bias, sae.output_scale)
    log10 = found["gba/log10_frequency_of_latents_that_fired"]
    assert len(log10) == n // 2
    np.testing.assert_allclose(log10, -1.0, rtol=1e-6)
    assert len(found["gba/bias"]) == n
    sae.adapter.frequency.zero_()
    assert set(histograms(sae.adapter, sae.bias, sae.output_scale)) == {
        "weights/output_scale", "gba/bias"
    }  # fmt: skip
