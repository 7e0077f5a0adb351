"""The demo: what it trains, how it runs mmdet's tools, and the report from the files they leave."""

from calkd_det.commands.demo.plan import Plan
from calkd_det.commands.demo.write import Report, write_report

__all__ = ['Plan', 'Report', 'write_report']
