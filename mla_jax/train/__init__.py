"""Training: state, step, optimizer, loop, checkpoints, metrics. Import from the modules.

The package itself can be called: `mla_jax.train(config, workdir)` is `mla_jax.train.loop.train`, whose docstring says
what it does. A function of that name in `mla_jax` would be replaced by this package as soon as a module of it is
imported.
"""

import sys
import types
from typing import Any


class _CallablePackage(types.ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from mla_jax.train.loop import train

        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
