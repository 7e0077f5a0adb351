_base_ = './faster-rcnn_r18_fpn_8xb1-ms-180k_coco.py'

model = dict(
    type='CalKDFasterRCNN',
    teacher=dict(
        config='mmdet::faster_rcnn/faster-rcnn_r101_fpn_ms-3x_coco.py',
        checkpoint=None,
        calibrator=dict(type='TemperatureScaling', temperature=1.5),
    ),
    distillation=dict(type='KDLoss', tau=1.0, loss_weight=1.0),
)
