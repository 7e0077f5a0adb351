_base_ = 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'

custom_imports = dict(imports=['calkd_det'], allow_failed_imports=False)

model = dict(
    type='CalKDDeformableDETR',
    teacher=dict(
        config=__import__('calkd_det').config_path(
            'deformable_detr/deformable-detr_r101_16xb2-50e_coco.py'
        ),
        # Written by mmdet's train.py, relative to the folder of the run.
        checkpoint='work_dirs/deformable-detr_r101_16xb2-50e_coco/epoch_50.pth',
        calibrator=dict(type='TemperatureScaling', temperature=1.0),  # fit it first, see the README
    ),
    distillation=dict(
        cls=dict(type='BinaryKDLoss', tau=1.0, loss_weight=1.0),
        bbox=dict(type='BoxKDLoss', loss_weight=1.0),
        feat=dict(type='PKDLoss', loss_weight=6.0),
    ),
)
