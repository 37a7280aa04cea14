"""Loads the native library once, and says plainly what to do where that fails."""

from pathlib import Path

import torch

NATIVE_DIRECTORY = Path(__file__).parent / "_native"
TORCH_LIBRARY = NATIVE_DIRECTORY / "libbrittle_torch.so"


def load() -> None:
    """Register brittle's operators with torch.

    Raises:
        ImportError: the shared object is missing or does not load; the message says how to build it.
    """
    try:
        torch.ops.load_library(str(TORCH_LIBRARY))  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ImportError(
            f"brittle's native library could not be loaded from {TORCH_LIBRARY} ({error}). "
            "Build it with `pip install --no-build-isolation .` in brittle's source tree; "
            "it needs torch >= 2.10."
        ) from error


load()
