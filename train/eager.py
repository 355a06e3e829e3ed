"""Training without PyTorch's compiler, which is loaded by whoever compiles.

The first optimizer and the first DistributedDataParallel of a process import `torch._dynamo`: some
800 modules, two to three seconds of a CPU in each worker. All that they want of it is to keep out
of a few of their functions, which it does by not being there.
"""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

_NAME = "torch._dynamo"


def leave_compiler_out() -> None:
    """Put something in the place of `torch._dynamo`, if nothing is there yet.

    It answers optimizers and DistributedDataParallel. Whatever else is asked of it, `torch.compile`
    for one, it loads the real one, takes it into its place, and passes the question on.

    Called after the process group is made: making one empties a cache of the compiler's.
    """
    if _NAME not in sys.modules:
        sys.modules[_NAME] = _Absent(_NAME)


class _Absent(ModuleType):
    # What `torch._dynamo.config.optimize_ddp` is by default. DistributedDataParallel asks whether
    # it is "python_reducer".
    utils = SimpleNamespace(get_optimize_ddp_mode=lambda: "ddp_optimizer")

    @staticmethod
    def disable(fn: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Any:
        """The function itself, for nothing is compiled."""
        if fn is None:
            return _load().disable(fn, *args, **kwargs)
        return fn

    @staticmethod
    def graph_break(*args: Any, **kwargs: Any) -> None:
        """There is no graph to be cut."""

    def __getattr__(self, name: str) -> Any:
        # `inspect` asks all modules for their file; an import within this one, for its path.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        return getattr(_load(), name)


def _load() -> Any:
    if isinstance(sys.modules.get(_NAME), _Absent):
        del sys.modules[_NAME]
    return importlib.import_module(_NAME)
