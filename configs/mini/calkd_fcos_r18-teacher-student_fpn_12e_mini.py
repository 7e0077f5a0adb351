_base_ = './fcos_r18-student_fpn_12e_mini.py'

model = dict(
    type='CalKDFCOS',
    teacher=dict(
        config=__import__('calkd_det').config_path('mini/fcos_r18-teacher_fpn_12e_mini.py'),
        # Written by mmdet's train.py, relative to the folder of the run.
        checkpoint='work_dirs/fcos_r18-teacher_fpn_12e_mini/epoch_12.pth',
        calibrator=dict(type='TemperatureScaling', temperature=1.0),
    ),
    distillation=dict(type='BinaryKDLoss', tau=1.0, loss_weight=1.0),
)
