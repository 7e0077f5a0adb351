_base_ = './calkd_gfl_r18-teacher-student_fpn_12e_mini.py'

# Classes and the distributions of the sides of boxes.
model = dict(
    distillation=dict(
        _delete_=True,
        cls=dict(type='BinaryKDLoss', tau=1.0, loss_weight=1.0),
        bbox=dict(type='LDLoss', loss_weight=0.25),
    )
)
