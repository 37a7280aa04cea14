import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "cuda_emulation"))

from hypothesis import settings

settings.register_profile("brittle", deadline=None, derandomize=True, max_examples=60)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "brittle"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws the same numbers in every run."""
    torch.manual_seed(0)


@pytest.fixture(params=["v4", "v3", "baseline"])
def simd_level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each instruction-set level that this processor has, forced for the length of a test."""
    import brittle.numpy

    levels = ["baseline", "v3", "v4"]
    best = brittle.numpy.build_facts()["simd_best"]
    if levels.index(request.param) > levels.index(best):
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv("BRITTLE_SIMD", request.param)
    return str(request.param)
