# Inherit from a config of the installed package, because mmengine cannot read `calkd_det::`.
_base_ = __import__('calkd_det').config_path(
    'faster_rcnn/calkd_faster-rcnn_r101-r50_fpn_8xb1-ms-180k_coco.py'
)

model = dict(teacher=dict(calibrator=dict(temperature=2.0)))
