"""The network through PyTorch's compiler, where that is asked for and possible; else as it is, which is said once.

On a GPU the compiler joins small operators, which a network of windows has many of. On the CPU it does not pay
(benchmarks/LOG.md). Outputs differ from those of the plain network by rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Compiled:
    """Calls a network, compiled by its first call."""

    def __init__(self, network: nn.Module, warn: Callable[[str], None]) -> None:
        """``warn`` is told, once, why the network could not be compiled; it then runs as it is."""
        self._network, self._warn = network, warn
        self._fast: Callable[..., Tensor] | None = None
        self._has_run = False
        try:
            self._fast = torch.compile(network)
        except RuntimeError as error:  # not for this system, or this Python
            self._give_up(error)

    def __call__(self, x: Tensor, mask: Tensor) -> Tensor:
        """Call the network; see :class:`.network.LightVideoInpaint`."""
        if self._fast is not None:
            try:
                out = self._fast(x, mask)
            except torch.OutOfMemoryError:
                raise
            except (
                Exception
            ) as error:  # compilers fail in many ways: no C++, no Triton, an operator unknown to them
                if self._has_run:
                    raise
                self._give_up(error)
            else:
                self._has_run = True
                return out
        plain: Tensor = self._network(x, mask)
        return plain

    def _give_up(self, error: Exception) -> None:
        self._fast = None
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        self._warn(f"--compile: the network cannot be compiled here ({said[:200]}); it runs as it is")
