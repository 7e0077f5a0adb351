_base_ = 'mmdet::retinanet/retinanet_r50_fpn_2x_coco.py'

custom_imports = dict(imports=['calkd_det'], allow_failed_imports=False)

model = dict(
    type='CalKDRetinaNet',
    teacher=dict(
        config='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py',
        checkpoint=None,
        calibrator=dict(type='TemperatureScaling', temperature=1.0),  # fit it first, see the README
    ),
    distillation=dict(
        cls=dict(type='BinaryKDLoss', tau=1.0, loss_weight=1.0),
        feat=dict(type='PKDLoss', loss_weight=10.0),
    ),
)
