"""``sae-lens-gba report``: from a folder with an SAE to a page about it."""

import argparse
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

from sae_lens_gba.atomic_write import require_writable
from sae_lens_gba.errors import DamagedFileError, StorageError
from sae_lens_gba.report.collect import ReportConfig, collect_report
from sae_lens_gba.report.explanations import read_explanations
from sae_lens_gba.report.html import write_html
from sae_lens_gba.report.latent_files import check_latents_folder
from sae_lens_gba.report.page_data import group_rows
from sae_lens_gba.report.results import Report
from sae_lens_gba.saved.evaluation import (
    EVALUATION_FILENAME,
    SCHEMA_VERSION,
    Evaluation,
    read_evaluation,
    weights_sha256,
)
from sae_lens_gba.sources import best_device, load_model_of, load_saes, load_text

HTML_NAME = "report.html"

_log = logging.getLogger(__name__)


def run_from_arguments(arguments: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        ValueError: a setting, an SAE or the output's name is not possible.
        FileNotFoundError: an SAE, or the demo's model or text, is not there.
    """
    write_report(
        arguments.sae_dir,
        compare=arguments.compare,
        model=arguments.model,
        dataset=arguments.dataset,
        output=arguments.output,
        device=arguments.device or best_device(),
        explanations=arguments.explanations,
        cfg=ReportConfig(**{f.name: getattr(arguments, f.name) for f in fields(ReportConfig)}),
    )


def write_report(
    sae_dir: str | Path,
    compare: Sequence[str | Path] = (),
    model: str | None = None,
    dataset: str | None = None,
    output: str | Path | None = None,
    device: str = "cpu",
    explanations: str | Path | None = None,
    cfg: ReportConfig | None = None,
) -> Path:
    """Make the report of an SAE: an HTML file, and its data beside it.

    The SAE's own figures go into ``evaluation.json`` in its folder, where `publish` finds them,
    unless those there were measured on more of the same text.

    Args:
        sae_dir: folder that SAELens saved an SAE in.
        compare: more of them, of the same model.
        model: hub name or folder; None is the SAE's own, see `load_model_of`.
        dataset: text to read, see `load_text`; None is what the SAE was trained on.
        output: HTML file; None is ``report.html`` in ``sae_dir``.
        device: where model and SAEs run; the command takes a CUDA GPU if there is one.
        explanations: what is said of the SAE's latents, see `read_explanations`.

    Returns:
        The HTML file's path. Of ``name.html`` the data is in ``name.json`` and, what is said of
        each latent, in ``name_latents``, which the page reads: move them together.
    """
    folder = Path(sae_dir).expanduser()
    path = folder / HTML_NAME if output is None else Path(output).expanduser()
    if path.suffix not in (".html", ".htm"):
        raise ValueError(f"output={path} is not possible: give a file name that ends in .html.")
    check_latents_folder(path)
    saes = load_saes([folder, *(Path(other).expanduser() for other in compare)], device)
    require_writable(path.parent)  # before anything is measured
    said: dict[int, str] = {}
    if explanations is not None:
        said = read_explanations(Path(explanations).expanduser(), saes[0].d_sae, saes[0].hook_name)
    text = load_text(dataset, saes[0].sae)
    language_model = load_model_of(saes[0].sae, model, device)
    report = collect_report(saes, language_model, text.dataset, text.name, cfg, text.held_out)
    report = replace(report, saes=[replace(report.saes[0], explanations=said), *report.saes[1:]])
    report.save(path.with_suffix(".json"))
    write_html(report, path)
    evaluation = _evaluation(report, folder)
    known = _known_evaluation(folder)
    if known is not None and _is_smaller(evaluation, known):
        _log.info(
            "wrote %s, with its data beside it; %s stays, which was measured on more of the same "
            "text (%s tokens, CE loss on %s; now %s, on %s): remove it to have this one's figures.",
            path,
            folder / EVALUATION_FILENAME,
            known.provenance.n_tokens,
            known.provenance.ce_tokens,
            evaluation.provenance.n_tokens,
            evaluation.provenance.ce_tokens,
        )
    else:
        try:
            saved = f", and {evaluation.save(folder)}"
        except StorageError as error:  # the SAE is somebody else's
            saved = f", but for publish no {EVALUATION_FILENAME}: {error}"
        _log.info("wrote %s, with its data beside it%s", path, saved)
    return path


def _known_evaluation(folder: Path) -> Evaluation | None:
    with suppress(DamagedFileError):  # of other weights
        return read_evaluation(folder)
    return None


def _is_smaller(evaluation: Evaluation, known: Evaluation) -> bool:
    new, old = evaluation.provenance, known.provenance
    if (new.dataset, new.held_out) != (old.dataset, old.held_out):
        return False
    if (new.n_tokens, new.ce_tokens) == (old.n_tokens, old.ce_tokens):
        return False
    return new.n_tokens <= old.n_tokens and new.ce_tokens <= old.ce_tokens


def _evaluation(report: Report, folder: Path) -> Evaluation:
    first = report.saes[0]
    by_group = [row["measured"] for row in group_rows(first)]
    return Evaluation(
        schema_version=SCHEMA_VERSION,
        metrics=first.metrics,
        group_frequency=by_group or None,
        provenance=report.provenance,
        weights_sha256=weights_sha256(folder),
    )
