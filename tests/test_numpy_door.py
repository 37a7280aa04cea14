"""brittle.numpy on its own: no torch, the interpreter lock released, threads."""

import os
import subprocess
import sys
import threading
import time

import brittle.numpy
import numpy as np
import pytest


def test_works_where_torch_cannot_be_imported() -> None:
    code = """
import sys
sys.modules["torch"] = None  # any import of it raises
import numpy as np, brittle.numpy
x = np.full((2, 5), 0.5, np.float32)
adv = brittle.numpy.linf_step_(x.copy(), np.ones_like(x), x, 0.25, 0.125)
assert (adv == 0.625).all(), adv
assert (abs(brittle.numpy.linf_start(x, 0.1) - x) <= 0.1).all()
assert brittle.numpy.sign_sweep(x, x, [0.25])[0, 0, 0] == 0.75
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_thread_count_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    clean = rng.random((3, 700_001), np.float32)
    grad = rng.standard_normal(clean.shape, np.float32)
    results = []
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("BRITTLE_NUM_THREADS", threads)
        assert brittle.numpy.build_facts()["threads"] == int(threads)
        results.append(brittle.numpy.linf_step_(clean.copy(), grad, clean, 0.1, 0.05).tobytes())
    assert len(set(results)) == 1


def test_other_python_threads_run_during_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRITTLE_NUM_THREADS", "1")
    x = np.random.default_rng(0).random((40_000_000,), np.float32)
    ticks: list[float] = []
    running = threading.Event()

    def count() -> None:
        while not running.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    counter = threading.Thread(target=count)
    counter.start()
    most = 0
    try:
        for _ in range(200):  # a busy machine may not schedule the other thread during one kernel
            begin = time.perf_counter()
            brittle.numpy.linf_start(x[None], 0.1)  # tens of milliseconds of one core
            end = time.perf_counter()
            most = max(most, sum(begin + 0.002 < t < end - 0.002 for t in ticks))
            if most:
                break
    finally:
        running.set()
        counter.join()
    assert most, f"the other thread never ran during a kernel, the last of which took {end - begin:.3f} s"


def test_negative_strides_and_column_order() -> None:
    rng = np.random.default_rng(1)
    clean = np.asfortranarray(rng.random((5, 6, 7)))
    grad = rng.standard_normal((5, 6, 7))[:, ::-1]
    expected = brittle.numpy.linf_step_(np.ascontiguousarray(clean), grad.copy(), clean, 0.1, 0.05)
    adv = clean.copy(order="F")[::-1]
    brittle.numpy.linf_step_(adv, grad[::-1], clean[::-1], 0.1, 0.05)
    assert (adv[::-1] == expected).all()
    sweep = brittle.numpy.sign_sweep(clean, grad, [0.05])
    assert sweep[0].flags.f_contiguous
    assert (sweep[0] == brittle.numpy.sign_sweep(clean.copy(order="C"), grad, [0.05])[0]).all()


def test_facts_are_of_this_build() -> None:
    facts = brittle.numpy.build_facts()
    assert facts["simd_in_use"] == os.environ.get("BRITTLE_SIMD", facts["simd_best"])
    assert facts["torch_target"] == "2.10"
    assert facts["compiler"].split()[0] in ("GNU", "Clang")
    if facts["cuda"]:
        assert facts["cuda_compiler"].startswith("nvcc 1")
        assert facts["cuda_architectures"] == "80-real 90-real 100"
