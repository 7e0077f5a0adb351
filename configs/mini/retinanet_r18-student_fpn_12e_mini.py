_base_ = './retinanet_r18-teacher_fpn_12e_mini.py'

# Half of the teacher's channels.
model = dict(
    backbone=dict(base_channels=8),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16),
)
