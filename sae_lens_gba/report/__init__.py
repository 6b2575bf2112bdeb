"""A trained SAE as a page to look at, and as data: ``sae-lens-gba report``.

`collect_report` reads text once and makes a `Report`, `report.html.write_html` draws it, for
which the extra ``report`` must be installed. `TrainingRecorder` is for charts of a training run.
"""

from sae_lens_gba.report.collect import ReportConfig, collect_report
from sae_lens_gba.report.command import add_arguments, run_from_arguments, write_report
from sae_lens_gba.report.results import Report, json_schema
from sae_lens_gba.training_record.record import TrainingRecord, TrainingRecorder

__all__ = [
    "Report",
    "ReportConfig",
    "TrainingRecord",
    "TrainingRecorder",
    "add_arguments",
    "collect_report",
    "json_schema",
    "run_from_arguments",
    "write_report",
]
