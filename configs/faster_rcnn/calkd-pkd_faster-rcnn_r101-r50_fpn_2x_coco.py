_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py'

custom_imports = dict(imports=['calkd_det'], allow_failed_imports=False)

model = dict(
    type='CalKDFasterRCNN',
    teacher=dict(
        config='mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py',
        checkpoint=None,
        calibrator=dict(type='TemperatureScaling', temperature=1.5),
    ),
    distillation=dict(
        cls=dict(type='KDLoss', tau=1.0, loss_weight=1.0),
        feat=dict(type='PKDLoss', loss_weight=6.0),
    ),
)
