_base_ = './dino_r18-student_12e_mini.py'

model = dict(
    type='CalKDDINO',
    teacher=dict(
        config=__import__('calkd_det').config_path('mini/dino_r18-teacher_12e_mini.py'),
        # Written by mmdet's train.py, relative to the folder of the run.
        checkpoint='work_dirs/dino_r18-teacher_12e_mini/epoch_12.pth',
        calibrator=dict(type='TemperatureScaling', temperature=1.0),
        denoising=True,
    ),
    distillation=dict(
        cls=dict(type='BinaryKDLoss', tau=1.0, loss_weight=1.0),
        bbox=dict(type='BoxKDLoss', loss_weight=1.0),
    ),
)
