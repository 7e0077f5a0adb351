"""Check a config before a long run: versions, teacher, the teacher's quality, one dry step."""

from calkd_det.commands.doctor.examine import examine
from calkd_det.commands.doctor.finding import Finding, verdict

__all__ = ['Finding', 'examine', 'verdict']
