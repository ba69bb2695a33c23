"""The interactive classifier: uploads, a working process that can be stopped, views, and reports to keep."""

from adlib.classify.widget.app import App, classifier_app
from adlib.classify.widget.result_tables import classify_scans, probability_table, summary_table, volume_table

__all__ = ["App", "classifier_app", "classify_scans", "probability_table", "summary_table", "volume_table"]
