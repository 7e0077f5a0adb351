"""The versions that were tested together; a test keeps them those of ``make env``."""

TESTED_VERSIONS = {
    'python': '3.11',
    'torch': '2.13.0',
    'mmengine': '0.10.7',
    'mmcv': '2.1.0',
    'mmdet': '3.3.0',
    'numpy': '2.4.6',
}
