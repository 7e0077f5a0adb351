_base_ = './deformable-detr_r18_16xb2-50e_coco.py'

custom_imports = dict(imports=['calkd_det'], allow_failed_imports=False)

model = dict(
    type='CalKDDeformableDETR',
    teacher=dict(
        config='mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
        checkpoint=None,
        calibrator=dict(type='TemperatureScaling', temperature=1.0),  # fit it first, see the README
    ),
    distillation=dict(
        cls=dict(type='BinaryKDLoss', tau=1.0, loss_weight=1.0),
        bbox=dict(type='BoxKDLoss', loss_weight=1.0),
        feat=dict(type='PKDLoss', loss_weight=6.0),
    ),
)
