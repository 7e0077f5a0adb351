_base_ = './teacher.py'

# Half of the teacher's channels in the backbone, and a neck as wide as the teacher's, so that
# feature maps can be compared channel by channel.
model = dict(
    backbone=dict(base_channels=8),
    neck=dict(in_channels=[8, 16, 32, 64]),
    roi_head=dict(bbox_head=dict(fc_out_channels=64)),
)
