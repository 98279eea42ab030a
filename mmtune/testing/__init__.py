"""Floor 5: checks that a third party runs on its own method or modality.

``mmtune.testing.check_method(Gist)`` and ``mmtune.testing.check_modality(Sonar, …)`` raise where a property is broken.
"""

from mmtune.testing.method import check_method
from mmtune.testing.modality import check_modality
from mmtune.testing.report import Finding, Report

__all__ = ["Finding", "Report", "check_method", "check_modality"]
