"""The GPU home of the operators that are tiled matrix products. Triton is imported at the first call."""

from collections.abc import Callable
from typing import Any

import torch

OPERATORS = ("pairwise_cosine", "pairwise_cosine_out", "pairwise_cosine_topk")


def register() -> None:
    """Tell torch where these operators are on CUDA devices. Imports no Triton."""
    for name in OPERATORS:
        torch.library.impl(f"brittle::{name}", "cuda")(_on_first_call(name))


def _on_first_call(name: str) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        try:
            from brittle.triton import pairwise_cosine
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] != "triton":
                raise
            raise ImportError(
                f"{name}: on a CUDA device this operator needs Triton, which is not installed. "
                "torch's CUDA wheels bring the version that fits; otherwise `pip install triton`."
            ) from error
        return getattr(pairwise_cosine, name)(*arguments)

    return call
