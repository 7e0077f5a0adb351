"""The demo: what it trains, how it runs mmdet's tools, and the report from the files they leave."""

from calkd_det.report.plan import Plan
from calkd_det.report.write import Report, write_report

__all__ = ['Plan', 'Report', 'write_report']
