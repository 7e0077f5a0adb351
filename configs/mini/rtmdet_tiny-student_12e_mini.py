_base_ = './rtmdet_tiny-teacher_12e_mini.py'

# Half of the teacher's channels.
model = dict(
    backbone=dict(widen_factor=0.125),
    neck=dict(in_channels=[32, 64, 128], out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32),
)
