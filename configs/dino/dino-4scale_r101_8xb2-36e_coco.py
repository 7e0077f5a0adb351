_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-36e_coco.py'

model = dict(
    backbone=dict(
        depth=101, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet101')
    ),
)
