_base_ = './calkd_faster-rcnn_r18-teacher-student_fpn_12e_mini.py'

# Classes and features. A convolution takes the student's neck to the width of the teacher's.
model = dict(
    distillation=dict(
        _delete_=True,
        cls=dict(type='KDLoss', tau=1.0, loss_weight=1.0),
        feat=dict(
            type='CWDLoss',
            loss_weight=1.0,
            num_levels=5,
            student_channels=16,
            teacher_channels=48,
        ),
    )
)
