"""A trained SAE as a page to look at, and as data: ``sae-lens-gba report``.

`collect_report` reads text once and makes a `Report`, `report.html.write_html` draws it.
"""

from sae_lens_gba.report.collect import ReportConfig, collect_report
from sae_lens_gba.report.command import write_report
from sae_lens_gba.report.results import Report, json_schema

__all__ = [
    "Report",
    "ReportConfig",
    "collect_report",
    "json_schema",
    "write_report",
]
