"""What a small tensor on a device says, without waiting for the device at every step."""

from collections.abc import Callable
from typing import Any

import torch


class HostCopy:
    """A value on the host that follows from a tensor; read anew whenever the tensor was written.

    torch counts the writes to a tensor (``_version``): a loaded state, a resumed run, another
    device or a copy are noticed without anybody telling.

    Args:
        read: makes the value of the tensor, at the price of a wait for the device.
    """

    def __init__(self, read: Callable[[torch.Tensor], Any]):
        self._read = read
        self._of: tuple[torch.Tensor, int] | None = None
        self._value: Any = None

    def __call__(self, tensor: torch.Tensor) -> Any:
        """The value that ``tensor`` has now."""
        if self._of is None or self._of[0] is not tensor or self._of[1] != tensor._version:
            self.set(tensor, self._read(tensor))
        return self._value

    def set(self, tensor: torch.Tensor, value: Any) -> None:
        """``tensor`` was written just now, and its ``value`` is known without reading it."""
        self._of, self._value = (tensor, tensor._version), value
