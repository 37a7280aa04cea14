"""Small things that the noise of training keeps count with."""

from __future__ import annotations

from torch import Tensor


def stream(seed: int, purpose: bytes) -> int:
    """The seed of a purpose's own stream: a bijection of ``seed`` that differs for each purpose.

    Inputs draw from the plain seed. Without this the noise on sample 3's first pixel at step 0 would be the
    noise on the fourth parameter's first gradient.
    """
    return (seed % 2**64) ^ int.from_bytes(purpose, "big")


def signed(seed: int) -> int:
    """The 64 bits of a seed as an int64 tensor holds them."""
    return seed - 2**64 if seed >= 2**63 else seed


class HostValue:
    """The number in a one-element tensor, known on the host.

    Reading a tensor back makes the host wait for a GPU, so it is done only after somebody else has written
    to the tensor or put another in its place.
    """

    def __init__(self) -> None:
        self._tensor: Tensor | None = None
        self._version = -1
        self._value = 0

    def of(self, tensor: Tensor) -> int:
        """What ``tensor`` holds."""
        if tensor.is_inference():  # has no version
            return int(tensor)
        if self._tensor is not tensor or self._version != tensor._version:
            self._tensor, self._version, self._value = tensor, tensor._version, int(tensor)
        return self._value

    def add_(self, tensor: Tensor, amount: int) -> None:
        """Add to ``tensor`` in place, without reading it."""
        value = self.of(tensor)
        tensor.add_(amount)
        if not tensor.is_inference():
            self._tensor, self._version, self._value = tensor, tensor._version, value + amount

    def __reduce__(self) -> tuple[type[HostValue], tuple[()]]:
        # A copied tensor starts with another version, which could later match by accident.
        return HostValue, ()
