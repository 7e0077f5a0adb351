_base_ = './calkd_faster-rcnn_r50-mobilenetv2_fpn_8xb1-ms-180k_coco.py'

model = dict(teacher=dict(calibrator=dict(temperature=1.0)))
