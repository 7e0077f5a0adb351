"""Teachers: find, load, match, freeze, run."""

from calkd_det.teachers.frozen_teacher import FrozenTeacher, TeacherNetwork

__all__ = ['FrozenTeacher', 'TeacherNetwork']
