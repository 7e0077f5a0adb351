"""Find or download the file of a teacher's checkpoint, and read it safely.

mmengine's ``CheckpointLoader`` calls ``torch.load`` without ``weights_only``, so that below torch
2.6 a file could run code. The cache of downloads is the same as mmengine's.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
import sys
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_rank
from mmengine.fileio import get_file_backend
from mmengine.logging import print_log

from calkd_det.errors import TeacherError
from calkd_det.safe_loading import load_checkpoint, refused_globals
from calkd_det.teachers.source import CHECKPOINT_KEY

_WEB = ('http://', 'https://')
_OBJECT_STORE = r'(\S+:)?(s3|petrel)://'


def read_checkpoint(checkpoint: str) -> Any:
    """Read a checkpoint without running code that it may hold.

    Args:
        checkpoint: A path, or an address that begins with ``http://``, ``https://``, ``s3://`` or
            ``petrel://``. A download from the web is kept in torch's cache. Only one of several
            processes on a machine downloads it.

    Raises:
        TeacherError: The file is missing, cannot be downloaded or read, or holds more than
            tensors and plain data.
    """
    try:
        file = _get_file(checkpoint)
        content = load_checkpoint(file)
    except TeacherError:
        raise
    except FileNotFoundError as error:
        raise TeacherError(f"{CHECKPOINT_KEY}: there is no file '{checkpoint}'") from error
    # Truncated files raise RuntimeError, EOFError or UnpicklingError, URLs URLError or OSError,
    # depending on torch's version and on where the file breaks off.
    except Exception as error:
        raise TeacherError(_describe_failure(checkpoint, error)) from error
    cached = cached_download(checkpoint)
    if cached is not None:
        _check_download(cached)
    return content


def cached_download(checkpoint: str) -> Path | None:
    """Return the file in torch's cache that was downloaded from an address; None without one."""
    if not checkpoint.startswith(_WEB):
        return None
    path = _cache_path(checkpoint)
    return path if path.is_file() else None


def _get_file(checkpoint: str) -> Path | BinaryIO:
    if checkpoint.startswith(_WEB):
        return _download(checkpoint)
    if re.match(_OBJECT_STORE, checkpoint):
        backend = get_file_backend(checkpoint, backend_args=dict(backend='petrel'))
        return io.BytesIO(backend.get(checkpoint))
    if '://' in checkpoint:
        raise TeacherError(
            f"{CHECKPOINT_KEY}: '{checkpoint}' is neither a path nor an address that begins with "
            'http://, https://, s3:// or petrel://: download the file and give its path. '
            '(torchvision:// and open-mmlab:// name backbones, not detectors.)'
        )
    return Path(checkpoint).expanduser()


def _download(url: str) -> Path:
    path = _cache_path(url)
    try:
        if get_rank() == 0:
            _fetch(url, path)
    finally:
        barrier()
    _fetch(url, path)  # on the other machines
    return path


def _fetch(url: str, path: Path) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        print_log(f'Downloading {url} to {path}', logger='current')
        torch.hub.download_url_to_file(url, str(path), progress=sys.stderr.isatty())


def _cache_path(url: str) -> Path:
    return Path(torch.hub.get_dir(), 'checkpoints', Path(urlparse(url).path).name)


def _describe_failure(checkpoint: str, error: Exception) -> str:
    cached = cached_download(checkpoint)
    path = cached or Path(checkpoint).expanduser()
    refused = refused_globals(path) if path.is_file() else []
    if refused:
        return (
            f"{CHECKPOINT_KEY}: '{checkpoint}' holds more than weights and plain data: "
            f'{", ".join(refused)}. Such objects can run code when they are read, so the file is '
            'not. If you trust it, write its weights to a file of their own where these classes '
            f"can be imported: import torch; c = torch.load({str(path)!r}, map_location='cpu', "
            "weights_only=False); torch.save(dict(state_dict=c['state_dict']), "
            f"'{path.stem}-weights.pth')"
        )
    again = '' if cached is None else f". Delete '{cached}' to have it downloaded again"
    lines = str(error).strip().split('\n')
    # torch's message begins with the advice to load the file unsafely.
    reason = next((line.strip() for line in lines if 'Unpickler error: ' in line), lines[0])
    return (
        f"{CHECKPOINT_KEY}: cannot read '{checkpoint}': truncated, not a PyTorch checkpoint, "
        f'unreachable, or holding more than weights and plain data ({type(error).__name__}: '
        f'{reason}){again}'
    )


def _check_download(cached: Path) -> None:
    """Warn where a file's SHA-256 does not begin with the 8 digits in its name.

    The model zoo names files ``NAME-<8 digits>.pth``. torch checks the digits neither after a
    download nor in its cache. This is no error, because a file may have been edited on purpose
    after it was named.
    """
    match = re.search(r'-([0-9a-f]{8})\.pth$', cached.name)
    if match is None:
        return
    digest = hashlib.sha256(cached.read_bytes()).hexdigest()
    if not digest.startswith(match[1]):
        print_log(
            f"{CHECKPOINT_KEY}: the SHA-256 of '{cached}' begins with {digest[:8]}, but its name "
            f'says {match[1]}: it is another version, or was damaged. Delete the file to have it '
            'downloaded again.',
            logger='current',
            level=logging.WARNING,
        )
