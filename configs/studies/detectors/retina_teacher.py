_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', './fashion.py']

# A small version of mmdet's RetinaNet; trained from scratch, so BatchNorm is not frozen, and neck
# and head have BatchNorm too.
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    backbone=dict(depth=18, base_channels=16, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=32, num_outs=4, norm_cfg=norm_cfg),
    bbox_head=dict(
        num_classes=10,
        in_channels=32,
        feat_channels=32,
        stacked_convs=2,
        norm_cfg=norm_cfg,
        anchor_generator=dict(
            octave_base_scale=3, scales_per_octave=2, ratios=[1.0], strides=[8, 16, 32, 64]
        ),
    ),
)
