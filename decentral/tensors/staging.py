"""Fragments on their way between a trainer's device and flat float32 tensors on the CPU.

On a GPU the copies run on a stream of their own, through pinned memory, so that neither the training thread nor the
GPU's own work waits for them. On the CPU there is nothing to stage; values that no device has whole (``store``) come
straight there. Knows nothing of rounds and rules.

Legend: N = values in the fragment.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from decentral.tensors.blank import blank
from decentral.tensors.layout import Layout

Store = Callable[[Mapping[str, Tensor]], None]


class Staging:
    """The way of one trainer's fragments.

    Args:
        layout: how its parameters are cut.
        device: where they live.
        store: copies the values of parameters into named tensors on the CPU, if nobody else can (``Spread``).
    """

    def __init__(self, layout: Layout, device: torch.device, store: Store | None = None) -> None:
        self._layout = layout
        self._store = store
        self._device = device = torch.device("cpu") if store is not None else device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def copy(self, parameters: Mapping[str, Tensor], fragment: int, device: torch.device | None = None) -> Tensor:
        """The values of a fragment as they are now, on the training thread; see ``Layout.gather``."""
        if self._store is None:
            return self._layout.gather(parameters, fragment, device)
        values_N = blank(self._layout.numel(fragment))
        self._store(self._layout.scatter(values_N, fragment))
        return values_N

    def take(self, parameters: Mapping[str, Tensor], fragment: int) -> Callable[[], Tensor]:
        """Copy the values of a fragment as they are now.

        To be called on the training thread, which goes on at once: on a GPU the copy within its memory is queued
        behind the work before, the one to the CPU runs beside the work after.

        Returns:
            To be called on any other thread: waits for the values, float32 [N] on the CPU.
        """
        here_N = self.copy(parameters, fragment, self._device)
        if self._stream is None:
            return here_N.cpu
        host_N = torch.empty(here_N.shape, dtype=torch.float32, pin_memory=True)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            host_N.copy_(here_N, non_blocking=True)
            arrived = self._stream.record_event()
        # Its memory must not be given to others before the side stream has read it.
        here_N.record_stream(self._stream)

        def wait() -> Tensor:
            arrived.synchronize()
            return host_N

        return wait

    def put(self, values_N: Tensor) -> Tensor:
        """The values [N] on the trainer's device; to be called off the training thread, which then need not wait."""
        if self._stream is None:
            return values_N.to(self._device)
        with torch.cuda.stream(self._stream):
            there_N = values_N.pin_memory().to(self._device, non_blocking=True)
        self._stream.synchronize()
        return there_N
