"""Import eth_account and web3 without two packages that only other uses of them need.

eth_keyfile imports py_ecc's BLS curves for keystores of validators (EIP-2335), which this package does not have. That
is half of the start-up of a gateway (0.3 of 0.6 s of processor time), and it sets the interpreter's recursion limit to
100,000, so that nested input ends the process instead of raising RecursionError. web3 imports requests for its
providers that block. Here both find modules in their places that import the package at the first use.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

SECP256K1_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
BLS12_381_ORDER = 0x73EDA753299D7D483339D80809A1D80553BDA402FFFE5BFEFFFFFFFF00000001


@contextmanager
def light_imports() -> Iterator[None]:
    """Let imports of eth_account and web3 find stand-ins; afterwards `import requests` imports the package."""
    deferred = [module for names in _stand_ins() if names[0].__name__ not in sys.modules for module in names]
    sys.modules.update({module.__name__: module for module in deferred})
    try:
        yield
    finally:
        for module in deferred:
            if sys.modules.get(module.__name__) is module:
                del sys.modules[module.__name__]
            # What web3 takes from now on is the package's.
            for name in [name for name in vars(module) if not name.startswith("__")]:
                delattr(module, name)


class _Deferred(ModuleType):
    """A module whose attributes are those of the package of its name, which is imported at the first use."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or sys.modules.get(self.__name__) is self:
            raise AttributeError(f"{self.__name__} is not imported yet, and has no {name!r}; see {__name__}")
        return getattr(importlib.import_module(self.__name__), name)


class _DeferredClass:
    """Stands for `py_ecc.bls.G2ProofOfPossession`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("py_ecc.bls").G2ProofOfPossession, name)


def _stand_ins() -> list[list[ModuleType]]:
    """Return the modules by package, with what is used of them while eth_keyfile and web3 are imported."""
    # Annotations of web3 need classes.
    requests = _module("requests", Session=type("Session", (), {}), Response=type("Response", (), {}))
    curves = [
        _module("py_ecc"),
        _module("py_ecc.bls", G2ProofOfPossession=_DeferredClass()),
        _module("py_ecc.bls12_381", curve_order=BLS12_381_ORDER),
        _module("py_ecc.secp256k1", N=SECP256K1_ORDER),
    ]
    return [[requests], curves]


def _module(name: str, **attributes: Any) -> ModuleType:
    module = _Deferred(name)
    vars(module).update(attributes)
    return module
