_base_ = './calkd_faster-rcnn_r18-teacher-student_fpn_12e_mini.py'

model = dict(teacher=dict(calibrator=dict(temperature=1.0)))
