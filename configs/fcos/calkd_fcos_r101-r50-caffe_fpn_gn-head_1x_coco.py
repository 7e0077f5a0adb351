_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'

custom_imports = dict(imports=['calkd_det'], allow_failed_imports=False)

model = dict(
    type='CalKDFCOS',
    teacher=dict(
        config='mmdet::fcos/fcos_r101-caffe_fpn_gn-head_ms-640-800-2x_coco.py',
        checkpoint=None,
        calibrator=dict(type='TemperatureScaling', temperature=1.0),  # fit it first, see the README
    ),
    distillation=dict(type='BinaryKDLoss', tau=1.0, loss_weight=1.0),
)
