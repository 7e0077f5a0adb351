_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'

custom_imports = dict(imports=['calkd_det'], allow_failed_imports=False)

model = dict(
    type='CalKDDINO',
    teacher=dict(
        config=__import__('calkd_det').config_path('dino/dino-4scale_r101_8xb2-36e_coco.py'),
        # Written by mmdet's train.py, relative to the folder of the run.
        checkpoint='work_dirs/dino-4scale_r101_8xb2-36e_coco/epoch_36.pth',
        calibrator=dict(type='TemperatureScaling', temperature=1.0),  # fit it first, see the README
        denoising=True,
    ),
    distillation=dict(
        cls=dict(type='BinaryKDLoss', tau=1.0, loss_weight=1.0),
        bbox=dict(type='BoxKDLoss', loss_weight=1.0),
        feat=dict(type='PKDLoss', loss_weight=6.0),
    ),
)
