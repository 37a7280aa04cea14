"""What a bug report needs to say about where brittle runs. Needs torch and NumPy alone."""

import json
import os
import platform
from pathlib import Path

import numpy as np
import torch

from brittle import __version__


def facts() -> dict[str, str]:
    """Versions, processor, devices and brittle's own build, each as one line of text.

    A native library that is missing or does not load is reported here too, not raised.

    Example:
        >>> from brittle import environment
        >>> environment.facts()["random_stream"]
        '1'
    """
    return {
        "brittle": __version__,
        "random_stream": "1",
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cpu_count": str(os.cpu_count()),
        "numpy": np.__version__,
        "torch": str(torch.__version__),
        "torch_threads": str(torch.get_num_threads()),
        "torch_cuda": torch.version.cuda or "none",
        "cuda_available": "yes" if torch.cuda.is_available() else "no",
        "cuda_devices": ", ".join(_cuda_devices()) or "none",
        **_build(),
        "torch_operators": _operators(),
    }


def as_text() -> str:
    """The facts as aligned lines, ready to be pasted."""
    named = {name.replace("_", " "): fact for name, fact in facts().items()}
    width = max(map(len, named))
    return "\n".join(f"{name:{width}}  {fact}" for name, fact in named.items())


def as_json() -> str:
    """The facts as a JSON object."""
    return json.dumps(facts(), indent=2)


def cpu_model() -> str:
    """The processor's name as the operating system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _cuda_devices() -> list[str]:
    if not torch.cuda.is_available():
        return []
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [f"{device.name} (sm_{device.major}{device.minor})" for device in devices]


def _build() -> dict[str, str]:
    try:
        import brittle.numpy
    except ImportError as error:
        return {"kernels": f"not loaded: {error}"}
    build = brittle.numpy.build_facts()
    return {
        "kernels": "loaded",
        "kernel_compiler": build["compiler"],
        "kernel_cuda": build["cuda_compiler"] if build["cuda"] else "not built",
        "kernel_cuda_architectures": build["cuda_architectures"] or "none",
        "kernel_simd_in_use": build["simd_in_use"],
        "kernel_simd_best": build["simd_best"],
        "kernel_threads": str(build["threads"]),
        "kernel_torch_abi": f"{build['torch_target']} or later",
    }


def _operators() -> str:
    try:
        import brittle.ops  # noqa: F401
    except ImportError as error:
        return f"not loaded: {error}"
    return "loaded"
