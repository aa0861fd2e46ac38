"""Pickles of numpy arrays and plain values, read without running anything that they name."""

import pickle
from typing import Any, BinaryIO

# What numpy's arrays are pickled with, under its old and its new module names. Nothing else is ever imported.
_ADMITTED = {
    (module, name)
    for module, names in {
        "numpy": ("ndarray", "dtype"),
        "numpy.core.multiarray": ("_reconstruct", "scalar"),
        "numpy._core.multiarray": ("_reconstruct", "scalar"),
        "numpy.core.numeric": ("_frombuffer",),
        "numpy._core.numeric": ("_frombuffer",),
    }.items()
    for name in names
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # bytes in protocol 2
            return lambda text, encoding: text.encode("latin-1")
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it holds a {module}.{name}")
        return super().find_class(module, name)


def load_arrays(stream: BinaryIO) -> Any:
    """What a pickle holds; `UnpicklingError` where it is more than arrays and plain values. A damaged one may raise
    nearly anything."""
    return _ArraysOnly(stream).load()
