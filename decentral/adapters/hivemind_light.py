"""The parts of hivemind we use, without the rest: 0.3 s to import instead of 3 s.

``import hivemind`` pulls in torch and its whole averager through the ``__init__`` files of three packages, although
the daemon bindings and the DHT node below need none of it. ``decentral status`` must answer within seconds on a
loaded machine, so those three packages are registered as lazy ones first: they find their submodules as usual, and
their own ``__init__`` runs, in the same module object, when somebody asks for a name that only it can give. A later
``from hivemind import DHT`` in the same process therefore works and shares every class with us. Nothing is done if
hivemind has been imported before.

Everything else in ``adapters`` takes hivemind's names from here.
"""

import importlib
import sys
from importlib.util import find_spec, module_from_spec
from types import ModuleType


class _LazyPackage(ModuleType):
    """A package whose ``__init__`` runs at the first access to a name it does not have yet."""

    def __getattr__(self, name: str) -> object:
        child = sys.modules.get(f"{self.__name__}.{name}")
        if child is not None:  # ``import a.b.c as d`` asks for ``a.b`` before its import has set the attribute.
            return child
        spec = self.__spec__
        # Introspection asks every module for dunder names; that is no reason to load torch.
        if spec is None or spec.loader is None or (name.startswith("__") and name != "__version__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        # Before the load: while it runs, a missing name has to be an error again.
        object.__setattr__(self, "__class__", ModuleType)
        try:
            spec.loader.exec_module(self)
        except BaseException:
            object.__setattr__(self, "__class__", _LazyPackage)
            raise
        return getattr(self, name)


def _register(name: str) -> ModuleType:
    spec = find_spec(name)
    if spec is None:
        raise ImportError(f"{name} is not installed", name=name)
    package = module_from_spec(spec)
    package.__class__ = _LazyPackage
    sys.modules[name] = package
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, package)
    return package


def _prepare() -> None:
    """Register the lazy packages and give them the few names that the submodules we want import from them."""
    _register("hivemind")
    utils = _register("hivemind.utils")
    for module, names in {
        "hivemind.utils.logging": ("get_logger",),
        "hivemind.utils.serializer": ("MSGPackSerializer", "SerializerBase"),
        "hivemind.utils.timed_storage": ("get_dht_time",),
    }.items():
        for name in names:
            setattr(utils, name, getattr(importlib.import_module(module), name))
    _register("hivemind.dht")


if "hivemind" not in sys.modules:
    _prepare()
    # hivemind writes to stderr by a handler of its own; an application decides that for itself.
    importlib.import_module("hivemind.utils.logging").use_hivemind_log_handler("nowhere")

from hivemind.dht.node import DHTNode  # noqa: E402
from hivemind.dht.validation import DHTRecord  # noqa: E402
from hivemind.p2p.p2p_daemon import P2P, P2PD_FILENAME  # noqa: E402
from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerID  # noqa: E402
from hivemind.p2p.p2p_daemon_bindings.utils import P2PHandlerError, read_pbmsg_safe, write_pbmsg  # noqa: E402
from hivemind.proto import crypto_pb2, dht_pb2, p2pd_pb2  # noqa: E402
from hivemind.utils.multiaddr import Multiaddr  # noqa: E402
from hivemind.utils.serializer import MSGPackSerializer  # noqa: E402

DecodeError = importlib.import_module("google.protobuf.message").DecodeError

__all__ = [
    "P2P",
    "P2PD_FILENAME",
    "DHTNode",
    "DHTRecord",
    "DecodeError",
    "MSGPackSerializer",
    "Multiaddr",
    "P2PHandlerError",
    "PeerID",
    "crypto_pb2",
    "dht_pb2",
    "p2pd_pb2",
    "read_pbmsg_safe",
    "write_pbmsg",
]
