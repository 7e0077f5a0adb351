_base_ = 'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py'

custom_imports = dict(imports=['calkd_det'], allow_failed_imports=False)

model = dict(
    type='CalKDCascadeRCNN',
    teacher=dict(
        config='mmdet::cascade_rcnn/cascade-mask-rcnn_r101_fpn_ms-3x_coco.py',
        checkpoint=None,
        calibrator=dict(type='TemperatureScaling', temperature=1.5),
    ),
    distillation=dict(type='KDLoss', tau=1.0, loss_weight=1.0),
)
