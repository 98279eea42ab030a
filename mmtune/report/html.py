"""The three reports: of a run, of the quickstart and of prepared data."""

from __future__ import annotations

from mmtune.report.data import write_data_report
from mmtune.report.quickstart import write_quickstart_report
from mmtune.report.run import write_run_report

__all__ = ["write_data_report", "write_quickstart_report", "write_run_report"]
