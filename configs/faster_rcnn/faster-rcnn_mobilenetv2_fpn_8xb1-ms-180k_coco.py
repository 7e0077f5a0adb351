_base_ = './faster-rcnn_r50_fpn_8xb1-ms-180k_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,  # drops the arguments of the ResNet
        type='MobileNetV2',
        out_indices=(1, 2, 4, 7),
        frozen_stages=-1,  # as published: FREEZE_AT is 0 for MobileNetV2, 2 only for the ResNets
        norm_eval=True,  # as for the ResNets, because one image a GPU is too few for batch statistics
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://mmdet/mobilenet_v2'),
    ),
    neck=dict(in_channels=[24, 32, 96, 1280]),
)
