"""Teachers: find their files, load their weights, match them to a student, run them frozen."""

from calkd_det.teachers.frozen_teacher import FrozenTeacher, TeacherNetwork

__all__ = ['FrozenTeacher', 'TeacherNetwork']
