"""A pickle module that builds tensors and plain data and refuses all else.

``torch.load(weights_only=True)`` of torch 2.1 to 2.5 cannot be told that further classes are safe,
or not under which name. There this module is given as ``pickle_module``. It allows the globals
that torch itself allows and those of :func:`calkd_det.safe_globals.safe_globals`, and calls,
creates and fills nothing but these.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

from calkd_det.safe_globals import allowed_globals, current_name

_REFUSED = (pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4)


class Unpickler(pickle._Unpickler):
    """Unpickle tensors and plain data.

    The implementation of pickle in Python: that in C does not let its operations be checked.

    Raises:
        pickle.UnpicklingError: The data name, call, create or fill anything that is not allowed.
    """

    dispatch: ClassVar[dict[int, Callable]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: BinaryIO, **kwargs: Any) -> None:
        super().__init__(file, **kwargs)
        self._allowed = allowed_globals()
        self._allowed_ids = {id(value) for value in self._allowed.values()}

    def find_class(self, module: str, name: str) -> Any:
        found = current_name(module, name)
        if found not in self._allowed:
            raise pickle.UnpicklingError(f'Unsupported global: {found}')
        return self._allowed[found]

    def _check(self, value: Any) -> None:
        if id(value) not in self._allowed_ids:
            raise pickle.UnpicklingError(f'{value!r} may be neither called nor changed')

    def load_reduce(self) -> None:
        self._check(self.stack[-2])
        super().load_reduce()

    def load_newobj(self) -> None:
        self._check(self.stack[-2])
        super().load_newobj()

    def load_build(self) -> None:
        self._check(type(self.stack[-2]))
        super().load_build()

    def load_refused(self) -> None:
        raise pickle.UnpicklingError('an operation of pickle that no checkpoint needs')

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.BUILD[0]] = load_build
    for _operation in _REFUSED:
        dispatch[_operation[0]] = load_refused


def load(file: BinaryIO, **kwargs: Any) -> Any:
    """Unpickle one object from a file; errors as of :class:`Unpickler`."""
    return Unpickler(file, **kwargs).load()
