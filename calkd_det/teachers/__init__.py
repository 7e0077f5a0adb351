"""Teachers: find their files, load their weights, match them to a student, run them frozen."""

from calkd_det.teachers.frozen_teacher import FrozenTeacher
from calkd_det.teachers.network import TeacherNetwork

__all__ = ['FrozenTeacher', 'TeacherNetwork']
