"""Tables of README and docs, made from the JSON in experiments/results, and the code of examples.

python -m experiments.tables [--check] [Markdown files]

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``; NAME is one of
TABLES. An example stands between ``<!-- example: NAME -->`` and ``<!-- end of example -->``; NAME
is that of a file in examples.
With --check nothing is written, and what differs from its JSON or example is an error.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.lab.results import RESULTS
from experiments.torture.run import MODULES
from sae_lens_gba.atomic_write import write_atomically

ROOT = Path(__file__).parents[1]
FILES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
EXAMPLES = {path.stem: path for path in sorted((ROOT / "examples").glob("*.py"))}
NOT_MEASURED = "*Not measured yet.*"
NOT_THERE = "\N{EN DASH}"
_MADE = re.compile(r"(<!-- (table|example): (\w+) -->\n)(.*?)(<!-- end of \2 -->)", re.DOTALL)

Result = dict[str, Any]
Row = dict[str, Any]

NAMES = {
    "gba": "GBA", "batchtopk": "BatchTopK", "jumprelu": "JumpReLU", "matryoshka": "Matryoshka",
    "matryoshka_batchtopk": "Matryoshka", "topk": "TopK", "standard": "Standard",
    "gba paper": "GBA, the paper's settings", "frozen decoder": "BatchTopK, random decoder frozen",
    "random directions": "random directions", "gba_transcoder": "GBA",
    "gba_skip_transcoder": "GBA with skip", "gba, hierarchies": "GBA, for hierarchies",
    "gba, hierarchies, more nesting": "GBA, for hierarchies, more nesting",
    "gba, 3.4 to 1.6": "GBA, targets from 3.4 to 1.6 times",
}  # fmt: skip


def fill(text: str, results: Path = RESULTS) -> str:
    """``text`` with every table and example in it made anew.

    Raises:
        ValueError: it names a table or an example that there is not.
    """

    def replaced(match: re.Match[str]) -> str:
        start, kind, name, _, end = match.groups()
        there = EXAMPLES if kind == "example" else TABLES
        if name not in there:
            raise ValueError(f"{kind}={name!r} is not possible: it must be one of {list(there)}.")
        if kind == "example":
            return f"{start}\n```python\n{EXAMPLES[name].read_text().strip()}\n```\n\n{end}"
        files, make = TABLES[name]
        paths = [results / file for file in files.split() if (results / file).is_file()]
        found = [json.loads(path.read_text()) for path in paths]
        rows = [row for result in found for row in result.get("rows", [])]
        body = make({**found[0], "rows": rows}) if found else NOT_MEASURED
        return f"{start}\n{body}\n\n{end}"

    return _MADE.sub(replaced, text)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 1 where --check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, default=FILES)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args(argv)
    differ = []
    for path in args.files:
        old = path.read_text()
        new = fill(old)
        if new != old:
            differ.append(path)
            if not args.check:
                write_atomically(path, partial(Path.write_text, data=new))
    for path in differ:
        print(f"{path}: " + ("differs from its sources" if args.check else "written anew"))
    return int(args.check and bool(differ))


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def against_batchtopk(result: Result) -> str:
    """README's: a few figures of GBA and BatchTopK on a language model."""
    shown = [
        "explained variance", "CE loss recovered", "PW-MCC between seeds",
        "latents that never fire", "CPU time, s",
    ]  # fmt: skip
    return _language_model(result, ["gba", "batchtopk"], shown)


def language_model(result: Result) -> str:
    """All architectures on a language model, means over seeds."""
    methods = sorted((row["method"] for row in result["chosen"]), key=list(NAMES).index)
    return _language_model(result, methods, None)


def _language_model(result: Result, methods: list[str], only: list[str] | None) -> str:
    asked = result["config"]["l0"]
    own = {m: _of(result["rows"], method=m, asked_l0=asked) for m in methods}
    lines: list[tuple[str, Callable[[str], str]]] = [
        ("L0", lambda m: f"{_mean(own[m], 'l0'):.1f}"),
        ("explained variance", lambda m: f"{_mean(own[m], 'explained_variance'):.3f}"),
        ("CE loss recovered", lambda m: f"{_mean(own[m], 'ce_loss_recovered'):.3f}"),
        ("latents that never fire", lambda m: f"{_mean(own[m], 'dead'):.0f}"),
    ]
    for field, text in (
        ("pw_mcc", "PW-MCC between seeds"),
        ("share_mcs_above_09", "latents with MCS > 0.9 between seeds"),
    ):
        found = {row["method"]: row[field] for row in result["consistency"]}
        if found:  # there were several seeds
            lines.append((text, partial(_entry, found)))
    for k in sorted({row["k"] for row in result["probing"]}):
        scores = {m: _of(result["probing"], method=m, k=k) for m in methods}
        text = f"sparse probes, mean AUC, k = {k}"
        lines.append((text, partial(_mean_entry, scores, "test_auc")))
    lines.append(("CPU time, s", lambda m: f"{_mean(own[m], 'seconds'):.0f}"))
    for l0 in result["config"]["other_l0"]:
        rows = {m: _of(result["rows"], method=m, asked_l0=l0) for m in methods}
        lines += [
            (f"{text} at L0 {l0:g}", partial(_mean_entry, rows, field))
            for field, text in (
                ("explained_variance", "explained variance"),
                ("ce_loss_recovered", "CE loss recovered"),
            )
        ]
    shown = [(text, value) for text, value in lines if only is None or text in only]
    header = ["", *(NAMES[m] for m in methods)]
    return markdown(header, ([text, *(value(m) for m in methods)] for text, value in shown))


def synthetic(result: Result) -> str:
    """Where the true features are known: every architecture at every number of samples."""
    batch, table = result["config"]["batch_size"], []
    for steps in sorted({row["steps"] for row in result["rows"]}):
        rows = _of(result["rows"], steps=steps)
        methods = sorted(
            {row["method"] for row in rows}, key=lambda m: -_mean(_of(rows, method=m), "mcc")
        )
        for method in methods:
            own = _of(rows, method=method)
            table.append([
                f"{steps * batch / 1e6:.0f} M" if steps else NOT_THERE, NAMES[method],
                f"{own[0]['learning_rate']:g}" if steps else NOT_THERE,
                *(f"{_mean(own, field):.3f}" for field in ("mcc", "f1", "explained_variance")),
                f"{_mean(own, 'l0'):.1f}", f"{_mean(own, 'dead'):.0f}",
                f"{_mean(own, 'seconds'):.0f}",
            ])  # fmt: skip
    header = ["samples", "architecture", "rate", "MCC", "F1", "explained variance", "L0", "dead"]
    return markdown([*header, "CPU time, s"], table)


# F1, MCC, explained variance after 200 million samples, by L0 (SAELens, docs/synth_sae_bench.md)
BOARD = {
    25: {
        "BatchTopK": (0.732, 0.757, 0.792), "Matryoshka": (0.879, 0.793, 0.779),
        "JumpReLU": (0.732, 0.753, 0.795), "Standard (L1)": (0.556, 0.604, 0.765),
        "MatchPursuit": (0.446, 0.693, 0.835),
    },
    20: {
        "BatchTopK": (0.818, 0.753, 0.789), "Matryoshka": (0.860, 0.746, 0.770),
        "JumpReLU": (0.824, 0.743, 0.791), "Standard (L1)": (0.578, 0.583, 0.750),
        "MatchPursuit": (0.444, 0.675, 0.827),
    },
}  # fmt: skip


def synthsaebench(result: Result) -> str:
    """The published board, and what was measured here on its world."""
    batch = result["config"]["batch_size"]
    table = [
        [f"{name}, as published", "4,096", f"{l0}", "200 M", "", "",
         *(f"{measure:.3f}" for measure in measures), "", ""]
        for l0, board in BOARD.items()
        for name, measures in board.items()
    ]  # fmt: skip
    runs: dict[tuple[Any, ...], list[Row]] = {}
    for row in result["rows"]:
        same = row["method"], row["d_sae"], row["l0_asked"], row["steps"], row["learning_rate"]
        runs.setdefault(same, []).append(row)
    for (method, d_sae, l0_asked, steps, rate), own in runs.items():
        measures = {"f1": 3, "mcc": 3, "explained_variance": 3, "l0": 1, "dead": 0}
        table.append([
            NAMES[method], f"{d_sae:,}", f"{l0_asked:g}", f"{steps * batch / 1e6:.1f} M",
            f"{rate:g}", f"{len(own)}",
            *(f"{_mean(own, f):.{digits}f}" for f, digits in measures.items()),
        ])  # fmt: skip
    header = ["", "latents", "L0 asked", "samples", "rate", "seeds", "F1", "MCC"]
    return markdown([*header, "explained variance", "L0", "dead"], table)


def l0_control(result: Result) -> str:
    """Each condition's worst miss over seeds, before and after calibration."""
    cases = list(dict.fromkeys(row["case"] for row in result["rows"]))
    table = []
    for case in cases:
        own = _of(result["rows"], case=case)
        table.append([
            case, f"{own[0]['target_l0']:.3g}",
            *(_percent(max(abs(row[field]) for row in own))
              for field in ("miss", "miss_uncalibrated")),
        ])  # fmt: skip
    return markdown(["condition", "target_l0", "worst miss", "before calibration"], table)


def other_l0(result: Result) -> str:
    """What an SAE explains and recovers at another L0 than it was trained for, and that L0."""
    l0s = result["config"]["l0s"]
    ways = dict.fromkeys(
        (row["trained_at"] if row["how"] != "trained there" else None, row["how"])
        for row in result["rows"]
    )
    table = []
    for trained_at, how in ways:
        text = how if trained_at is None else f"trained at {trained_at:g}: {how}"
        cells = []
        for l0 in l0s:
            found = [
                row
                for row in _of(result["rows"], how=how, used_at=l0)
                if trained_at in (None, row["trained_at"])
            ]
            cells.append(
                f"{found[0]['explained_variance']:.3f} / {found[0]['ce_recovered']:.3f} / "
                f"{found[0]['l0']:.1f}"
                if found
                else ""
            )
        table.append([text, *cells])
    return markdown(["", *(f"L0 {l0:g}" for l0 in l0s)], table)


def throughput(result: Result) -> str:
    """How many times faster a GBA step is than that of another architecture."""
    others = ["standard", "topk", "jumprelu", "batchtopk", "matryoshka"]
    table = []
    for case in result["cases"]:
        seconds = {name: one["seconds"] for name, one in case["architectures"].items()}
        ratios = [
            f"{seconds[name] / seconds['gba']:.1f}" if name in seconds else NOT_THERE
            for name in others
        ]
        product = seconds["gba"] / seconds["encoder product"]
        gba, other = (
            case["architectures"][n].get("peak_memory_bytes") for n in ("gba", "batchtopk")
        )
        own = [f"{product:.2f}", f"{gba / other:.2f}" if gba and other else NOT_THERE]
        table.append([f"{case['d_sae']:,}", f"{case['l0']:g}", _precision(case), *ratios, *own])
    header = ["d_sae", "L0", "products in", *(NAMES[name] for name in others)]
    return markdown(
        [*header, "GBA step / encoder product", "GBA's peak memory / BatchTopK's"], table
    )


def step_parts(result: Result) -> str:
    """Shares of a GBA step by what takes them."""
    cases = {
        f"{part['d_sae']:,}, {_precision(part)}": part["seconds"]
        for part in result.get("parts", [])
    }
    names = list(dict.fromkeys(name for seconds in cases.values() for name in seconds))
    rows = (
        [name, *(_percent(s.get(name, 0.0) / sum(s.values())) for s in cases.values())]
        for name in names
    )
    return markdown(["part of a step, d_sae", *cases], rows) if cases else NOT_MEASURED


def learning_rate(result: Result) -> str:
    """Explained variance at every rate, a line for each kind of run; the best in bold."""
    rates = sorted({row["learning_rate"] for row in result["rows"]})
    kinds: dict[tuple[Any, ...], dict[float, float]] = {}
    for row in result["rows"]:
        kind = row["data"], row["d_sae"], row["batch_size"], row["steps"], row["decay"]
        kinds.setdefault(kind, {})[row["learning_rate"]] = row["explained_variance"]
    lines = []
    for (data, d_sae, batch_size, steps, decay), found in kinds.items():
        run = f"{data}, {d_sae:,} latents, {steps:,} steps of {batch_size:,}"
        best = max(found.values())
        lines.append(
            [run, "falls" if decay else "constant", *(_best(found.get(r), best) for r in rates)]
        )
    return markdown(["run", "rate", *(f"{rate:g}" for rate in rates)], lines)


def _best(value: float | None, best: float) -> str:
    if value is None:
        return NOT_THERE
    return f"**{value:.3f}**" if value == best else f"{value:.3f}"


def imbalanced_set(result: Result) -> str:
    """The paper's imbalanced set: recovered features in %, at the last step of each method."""
    table = []
    for method in dict.fromkeys(row["method"] for row in result["rows"]):
        own = _of(result["rows"], method=method)
        last = _of(own, steps=max(row["steps"] for row in own))
        table.append([
            f"`{method}`",
            *(f"{100 * _mean(last, field):.1f}" for field in ("frr_08", "frr_09")),
            f"{_mean(last, 'l0'):.1f}", f"{_mean(last, 'explained_variance'):.3f}",
        ])  # fmt: skip
    return markdown(["method", "FRR(0.8), %", "FRR(0.9), %", "L0", "explained variance"], table)


def torture(result: Result) -> str:
    """What was done on purpose, and what was lost of it."""
    names = ["fault", "tried", "survived", "lost"]
    return markdown(names, ([_plain(row[name]) for name in names] for row in result["rows"]))


def transcoder(result: Result) -> str:
    """Means over seeds, and their range where it shows."""
    fields = {"explained_variance": 3, "ce_recovered": 3, "l0": 2, "dead": 0, "seconds": 0}
    table = []
    for method in dict.fromkeys(row["method"] for row in result["rows"]):
        own = _of(result["rows"], method=method)
        found = {field: [row[field] for row in own] for field in fields}
        cells = [_with_range(found[field], digits) for field, digits in fields.items()]
        table.append([NAMES[method], f"{own[0]['learning_rate']:g}", *cells])
    header = ["", "learning rate", "explained variance", "CE loss recovered", "L0", "dead"]
    return markdown([*header, "CPU time, s"], table)


def _with_range(values: list[float], digits: int) -> str:
    low, mean, high = (f"{v:.{digits}f}" for v in (min(values), fmean(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def _precision(case: Row) -> str:
    return "bfloat16" if case["autocast"] else "float32"


def _of(rows: list[Row], **wanted: Any) -> list[Row]:
    return [row for row in rows if all(row.get(name) == v for name, v in wanted.items())]


def _mean(rows: list[Row], field: str) -> float:
    return fmean(float(row[field]) for row in rows)


def _entry(values: dict[str, float], method: str) -> str:
    return f"{values[method]:.3f}" if method in values else NOT_THERE


def _mean_entry(rows: dict[str, list[Row]], field: str, method: str) -> str:
    return f"{_mean(rows[method], field):.3f}" if rows[method] else NOT_THERE


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _plain(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# the results that a table is of, and what makes it of their rows
TABLES: dict[str, tuple[str, Callable[[Result], str]]] = {
    "against_batchtopk": ("language_model_comparison.json", against_batchtopk),
    "language_model": ("language_model_comparison.json", language_model),
    "language_model_mlp": ("language_model_comparison_mlp.json", language_model),
    "language_model_wide": ("language_model_comparison_wide.json", language_model),
    "language_model_wide_64": ("language_model_comparison_wide_64.json", language_model),
    "language_model_wide_long": ("language_model_comparison_wide_long.json", language_model),
    "synthetic": ("architecture_comparison.json", synthetic),
    "synthetic_long": ("architecture_comparison_long.json", synthetic),
    "full_width": ("architecture_comparison_full_width.json", synthetic),
    "synthsaebench": (
        "synthsaebench.json synthsaebench_lower_rate.json synthsaebench_default.json "
        "synthsaebench_from_higher.json synthsaebench_more_nesting.json "
        "synthsaebench_long.json synthsaebench_long_lower_rate.json "
        "synthsaebench_other_l0s.json synthsaebench_others.json synthsaebench_matryoshka.json "
        "synthsaebench_full_width.json",
        synthsaebench,
    ),
    "l0_control": ("l0_control.json", l0_control),
    "other_l0": ("other_l0.json", other_l0),
    "throughput": ("training_throughput.json", throughput),
    "step_parts": ("training_throughput.json", step_parts),
    "learning_rate": ("learning_rate.json", learning_rate),
    "imbalanced_set": ("01_imbalanced_set.json", imbalanced_set),
    "imbalanced_set_longer": ("01_imbalanced_set_longer.json", imbalanced_set),
    "imbalanced_set_unit_norm": ("01_imbalanced_set_unit_norm.json", imbalanced_set),
    "torture": (" ".join(f"torture/{module}.json" for module in MODULES), torture),
    "transcoder": ("transcoder.json", transcoder),
}

if __name__ == "__main__":
    raise SystemExit(main())
