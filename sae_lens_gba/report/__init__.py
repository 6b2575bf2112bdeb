"""A trained SAE as a page to look at, and as data: ``sae-lens-gba report``.

`collect_report` reads text once and makes a `Report`, `report.html.write_html` draws it.
"""

from sae_lens_gba.report.collect import ReportConfig, collect_report
from sae_lens_gba.report.command import add_arguments, run_from_arguments, write_report
from sae_lens_gba.report.results import Report, json_schema

__all__ = [
    "Report",
    "ReportConfig",
    "add_arguments",
    "collect_report",
    "json_schema",
    "run_from_arguments",
    "write_report",
]
