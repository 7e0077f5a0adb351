_base_ = './cascade-rcnn_r18-teacher_fpn_12e_mini.py'

# A third of the teacher's channels.
model = dict(
    backbone=dict(base_channels=8),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=[
            dict(
                type='Shared2FCBBoxHead',
                in_channels=16,
                fc_out_channels=64,
                num_classes=10,
                reg_class_agnostic=True,
                bbox_coder=dict(
                    type='DeltaXYWHBBoxCoder',
                    target_means=[0.0, 0.0, 0.0, 0.0],
                    target_stds=[std, std, 2 * std, 2 * std],
                ),
            )
            for std in (0.1, 0.05, 0.033)
        ],
    ),
)
