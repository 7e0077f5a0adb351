_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'

custom_imports = dict(imports=['calkd_det'], allow_failed_imports=False)

model = dict(
    type='CalKDDINO',
    teacher=dict(
        # Five levels, the student has four: classes and boxes are compared, feature maps are not.
        config='mmdet::dino/dino-5scale_swin-l_8xb2-36e_coco.py',
        checkpoint=None,
        calibrator=dict(type='TemperatureScaling', temperature=1.0),  # fit it first, see the README
        denoising=True,
    ),
    distillation=dict(
        cls=dict(type='BinaryKDLoss', tau=1.0, loss_weight=1.0),
        bbox=dict(type='BoxKDLoss', loss_weight=1.0),
    ),
)
