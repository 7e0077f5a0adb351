"""Packaging. The backend and the settings of all tools are in pyproject.toml."""

from __future__ import annotations

import re
import runpy
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM_CONTENT = ('configs', 'tools', 'model-index.yml')
VERSION = runpy.run_path(str(ROOT / 'calkd_det' / 'version.py'))['__version__']
# The address of the repository on a forge, without a slash at the end; empty while it has none.
REPOSITORY = ''
URLS = {'Paper': 'https://doi.org/10.1109/ACCESS.2025.3585106'}
if REPOSITORY:
    URLS |= {'Source': REPOSITORY, 'Changelog': f'{REPOSITORY}/blob/v{VERSION}/CHANGELOG.md'}


def readme_for_index(repository: str) -> str:
    """Return the README with links that work outside the repository.

    Links to files of the repository lead to ``repository`` at the tag of this version. Without an
    address they become their text, and pictures are left out.

    Args:
        repository: ``https://HOST/OWNER/NAME``, or an empty string.
    """
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    picture = rf'![\1]({repository}/raw/v{VERSION}/\2)' if repository else ''
    link = rf'[\1]({repository}/blob/v{VERSION}/\2)' if repository else r'\1'
    text = re.sub(r'!\[([^\]]*)\]\((?![a-z]+:)([^)]+)\)', picture, text)
    return re.sub(r'(?<!!)\[([^\]]*)\]\((?![a-z]+:|#)([^)]+)\)', link, text)


class BuildWithMim(build_py):
    """Puts configs and tools into the package's ``.mim`` folder, where OpenMMLab looks for them.

    A wheel gets copies; an editable install gets links, so that an edit is seen at once.
    """

    def run(self) -> None:
        super().run()
        package = ROOT / 'calkd_det' if self.editable_mode else Path(self.build_lib, 'calkd_det')
        mim = package / '.mim'
        mim.mkdir(parents=True, exist_ok=True)
        for name in MIM_CONTENT:
            source, target = ROOT / name, mim / name
            if target.is_symlink() or target.is_file():
                target.unlink()
            elif target.is_dir():
                shutil.rmtree(target)
            if self.editable_mode:
                target.symlink_to(Path('..', '..', name))
            elif source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__'))
            else:
                shutil.copy2(source, target)


setup(
    name='calkd-det',
    version=VERSION,
    description='Knowledge distillation from calibrated teachers for MMDetection',
    long_description=readme_for_index(REPOSITORY),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    project_urls=URLS,
    keywords='object detection, knowledge distillation, calibration, MMDetection',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3.11',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    python_requires='>=3.11',  # the one that the tests run with
    packages=find_packages(include=['calkd_cli', 'calkd_cli.*', 'calkd_det', 'calkd_det.*']),
    entry_points={'console_scripts': ['calkd = calkd_cli:main']},
    cmdclass={'build_py': BuildWithMim},
    # torch, mmengine, mmcv and mmdet are checked at import instead: they also come under
    # other distribution names, and pip would install one stack over the other.
    install_requires=['markdown-it-py', 'rich-argparse'],
    extras_require={
        'mmdet': ['torch>=2.1', 'mmengine>=0.10', 'mmcv>=2.0.0,<2.2.0', 'mmdet>=3.0.0'],
        'mini-data': ['scikit-learn'],
        'split': ['iterative-stratification'],
        'tests': ['pytest', 'pytest-xdist', 'hypothesis', 'torchmetrics', 'build', 'ruff'],
        'docs': ['mkdocs-material', 'mkdocstrings-python', 'latex2mathml'],
    },
    zip_safe=False,
)
