"""In place of yapf, with which mmengine formats a config each time it logs or saves it.

That takes about a second for a config of mmdet, more than half of a short training.
"""

__version__ = '0.43.0'
