_base_ = './rtmdet_tiny-student_12e_mini.py'

model = dict(
    type='CalKDRTMDet',
    teacher=dict(
        config=__import__('calkd_det').config_path('mini/rtmdet_tiny-teacher_12e_mini.py'),
        # Written by mmdet's train.py, relative to the folder of the run.
        checkpoint='work_dirs/rtmdet_tiny-teacher_12e_mini/epoch_12.pth',
        calibrator=dict(type='TemperatureScaling', temperature=1.0),
    ),
    distillation=dict(type='BinaryKDLoss', tau=1.0, loss_weight=1.0),
)
