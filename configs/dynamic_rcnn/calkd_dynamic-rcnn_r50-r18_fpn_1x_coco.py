_base_ = './dynamic-rcnn_r18_fpn_1x_coco.py'

custom_imports = dict(imports=['calkd_det'], allow_failed_imports=False)

model = dict(
    type='CalKDFasterRCNN',
    teacher=dict(
        config='mmdet::dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco.py',
        checkpoint=None,
        calibrator=dict(type='TemperatureScaling', temperature=1.5),
    ),
    distillation=dict(type='KDLoss', tau=1.0, loss_weight=1.0),
)
