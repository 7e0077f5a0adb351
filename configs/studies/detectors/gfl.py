_base_ = './gfl_teacher.py'

# Half of the teacher's channels in backbone and head, and a neck as wide as the teacher's.
model = dict(
    backbone=dict(base_channels=8),
    neck=dict(in_channels=[8, 16, 32, 64]),
    bbox_head=dict(feat_channels=16),
)
