"""What a kernel is handed by mistake: overlapping memory, several devices, derivatives that it has not, and
arrays that once killed the interpreter."""

import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import brittle.numpy
import numpy as np
import pytest
import torch
from brittle import noise, ops
from torch import Tensor

KINDS = ("gaussian", "uniform", "laplace", "speckle", "shot", "salt_and_pepper", "dropout")


# ---- memory ----


STEPS: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "linf": lambda adv, grad, clean: ops.linf_step_(adv, grad, clean, 0.1, 0.2),
    "l2": lambda adv, grad, clean: ops.l2_step_(adv, grad, clean, 0.1, 0.2),
    "l1": lambda adv, grad, clean: ops.l1_step_(adv, grad, clean, 0.1, 0.2, 2),
    "numpy": lambda adv, grad, clean: brittle.numpy.linf_step_(
        adv.numpy(), grad.numpy(), clean.numpy(), 0.1, 0.2
    ),
}


class TestOverlap:
    @pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
    @pytest.mark.parametrize("operand", ["grad", "clean"])
    def test_a_view_shifted_by_an_element_is_refused(self, step: Any, operand: str) -> None:
        buffer, other = torch.rand(65), torch.rand(4, 16)
        adv, shifted = buffer[:64].view(4, 16), buffer[1:].view(4, 16)
        grad, clean = (shifted, other) if operand == "grad" else (other, shifted)
        before = buffer.clone()
        with pytest.raises((ValueError, RuntimeError), match=rf"adv must be {operand} itself or share no"):
            step(adv, grad, clean)
        assert torch.equal(buffer, before)

    @pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
    def test_views_side_by_side_in_one_buffer_are_let_through(self, step: Any) -> None:
        torch.manual_seed(0)
        parts = [torch.rand(4, 16) for _ in range(3)]
        expected = parts[0].clone()
        step(expected, parts[1], parts[2])
        for interleaved in (
            torch.stack(parts, -1).unbind(-1),
            torch.stack(parts, 1).unbind(1),
            torch.stack(parts).unbind(0),
        ):
            step(*interleaved)
            assert torch.equal(interleaved[0], expected)

    @pytest.mark.parametrize("alias", ["grad", "clean"])
    def test_the_very_same_memory_is_right(self, alias: str) -> None:
        torch.manual_seed(0)
        x, other = torch.rand(4, 16), torch.rand(4, 16)
        grad, clean = (x, other) if alias == "grad" else (other, x)
        expected = ops.linf_step_(x.clone(), grad.clone(), clean.clone(), 0.1, 0.2)
        assert torch.equal(ops.linf_step_(x, grad, clean, 0.1, 0.2), expected)

    def test_sweeps_that_write_over_what_they_still_read(self) -> None:
        out = torch.rand(2, 3, 8)
        with pytest.raises(ValueError, match="out must not share memory with x"):
            ops.sign_sweep(out[0], torch.rand(3, 8), [0.1, 0.2], out=out)
        with pytest.raises(ValueError, match="out must not share memory with grad"):
            ops.sign_sweep(torch.rand(3, 8), out[1], [0.1, 0.2], out=out)
        x, grad = out[0].clone(), torch.rand(3, 8)
        single = out[:1]
        ops.sign_sweep(single[0], grad, [0.1], out=single)
        assert torch.equal(single, ops.sign_sweep(x, grad, [0.1]))

    @pytest.mark.parametrize("strides", [(0, 1), (1, 0), (1, 1), (3, 2)])
    def test_outputs_that_meet_themselves(self, strides: tuple[int, int]) -> None:
        adv = torch.rand(64).as_strided((4, 5), strides)
        with pytest.raises(ValueError, match="adv must not be expanded"):
            ops.linf_step_(adv, torch.rand(4, 5), torch.rand(4, 5), 0.1, 0.2)


# ---- devices and graphs ----


class TestDevicesAndGraphs:
    def test_operands_on_several_devices_are_refused(self) -> None:
        cpu, meta = torch.rand(2, 3), torch.rand(2, 3, device="meta")
        for call in (
            lambda: ops.linf_step_(cpu, meta, cpu, 0.1, 0.2),
            lambda: ops.l2_step_(cpu, cpu, meta, 0.1, 0.2),
            lambda: ops.l1_step_(cpu, meta, cpu, 0.1, 0.2, 1),
            lambda: ops.sign_sweep(cpu, meta, [0.1]),
            lambda: ops.pairwise_cosine(cpu, meta),
        ):
            with pytest.raises((ValueError, RuntimeError), match=r"must be on \w+'s device"):
                call()

    def test_what_is_overwritten_must_not_be_in_a_graph(self) -> None:
        x = torch.rand(2, 3)
        leaf = x.clone().requires_grad_()
        for adv in (leaf, leaf * 1):
            for call in (
                lambda adv=adv: ops.linf_step_(adv, x, x, 0.1, 0.2),
                lambda adv=adv: ops.l2_step_(adv, x, x, 0.1, 0.2),
                lambda adv=adv: ops.l1_step_(adv, x, x, 0.1, 0.2, 1),
                lambda adv=adv: ops.momentum_step_(adv, x.clone(), x, x, 0.1, 0.2),
            ):
                with pytest.raises(ValueError, match=r"adv must not require grad.*adv.detach\(\)"):
                    call()
        with torch.no_grad():
            ops.linf_step_(leaf.detach(), x, x, 0.1, 0.2)


# ---- derivatives ----


class TestDerivatives:
    @pytest.mark.parametrize("kind", KINDS)
    def test_of_noise_are_those_of_finite_differences(self, kind: str) -> None:
        torch.manual_seed(0)
        x = torch.rand(2, 5, dtype=torch.float64).mul_(0.5).add_(0.25).requires_grad_()
        amount = 0.3 if kind in ("salt_and_pepper", "dropout") else 0.05

        def noisy(x: Tensor) -> Tensor:
            return ops.noise(x, kind, amount, seed=1, bounds=(0.0, 1.0))

        if kind == "shot":
            assert torch.func.jvp(noisy, (x.detach(),), (torch.ones(2, 5).double(),))[1].isfinite().all()
            return
        assert torch.autograd.gradcheck(noisy, (x,))
        squared = lambda x: noisy(x) ** 2  # noqa: E731
        assert torch.autograd.gradgradcheck(squared, (x,))
        tangent = torch.rand(2, 5, dtype=torch.float64)
        forward = torch.func.jvp(noisy, (x.detach(),), (tangent,))[1]
        (backward,) = torch.autograd.grad(noisy(x), x, tangent)
        assert torch.allclose(forward, backward)

    def test_second_derivatives_and_tangents_by_hand(self) -> None:
        x = torch.full((1, 3), 0.5, requires_grad=True)
        out = noise.gaussian(x, 0.1, seed=1)
        (first,) = torch.autograd.grad((out**2).sum(), x, create_graph=True)
        assert torch.equal(torch.autograd.grad(first.sum(), x)[0], torch.full((1, 3), 2.0))
        tangent = torch.func.jvp(
            lambda t: noise.gaussian(t, 0.1, seed=1), (x.detach(),), (torch.ones(1, 3),)
        )[1]
        assert torch.equal(tangent, torch.ones(1, 3))

    def test_of_cosines_in_forward_mode(self) -> None:
        torch.manual_seed(0)
        a, tangent = torch.rand(4, 3, dtype=torch.float64), torch.rand(4, 3, dtype=torch.float64)
        value, forward = torch.func.jvp(ops.pairwise_cosine, (a,), (tangent,))
        step = 1e-6
        moved = [ops.pairwise_cosine(a + sign * step * tangent) for sign in (1, -1)]
        assert torch.allclose(forward, (moved[0] - moved[1]) / (2 * step), atol=1e-8)
        assert torch.equal(value, ops.pairwise_cosine(a))

    def test_steps_refuse_tangents(self) -> None:
        x = torch.rand(2, 3)
        with pytest.raises(ValueError, match="must not carry tangents"):
            torch.func.jvp(lambda g: ops.linf_step_(x.clone(), g, x, 0.1, 0.2), (x,), (x,))


# ---- what killed the interpreter ----


class TestArrays:
    @pytest.mark.parametrize(
        "array",
        [
            np.zeros((2, 2), "V0"),
            np.zeros(3, []),
            np.zeros((2, 2), "S0"),
            np.zeros((2, 2), "datetime64[s]"),
            np.zeros((2, 2), object),
            np.zeros((2, 2), [("a", "f4")]),
            np.zeros((2, 2), ">f4"),
            np.zeros((2, 2), np.longdouble),
            np.zeros((2, 2), np.complex64),
        ],
        ids=lambda array: str(array.dtype),
    )
    def test_of_any_dtype_are_refused_and_nothing_dies(self, array: Any) -> None:
        for call in (
            lambda: brittle.numpy.pairwise_cosine(array),
            lambda: brittle.numpy.noise(array, "gaussian", 0.1),
            lambda: brittle.numpy.linf_step_(array, array, array, 0.1, 0.2),
        ):
            with pytest.raises((ValueError, TypeError)):
                call()

    @pytest.mark.parametrize("count", ["x", "-1", "0", "1e3", "99999999999999999999"])
    def test_a_number_of_threads_that_is_none(self, count: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BRITTLE_NUM_THREADS", count)
        with pytest.raises(ValueError, match=f"expected a whole number >= 1; got {count}"):
            brittle.numpy.linf_start(np.zeros((1, 1_000_000), np.float32), 0.1)

    def test_threads_that_cannot_be_started_are_done_without(self) -> None:
        code = """
            import os, resource, numpy as np, brittle.numpy as bn
            rng = np.random.default_rng(0)
            a, g = (rng.random((64, 200_000), np.float32) for _ in range(2))
            os.environ["BRITTLE_NUM_THREADS"] = "1"
            expected = bn.linf_step_(a.copy(), g, a, 0.1, 0.2)
            os.environ["BRITTLE_NUM_THREADS"] = "64"
            adv = a.copy()
            room = int(open("/proc/self/statm").read().split()[0]) * 4096 + (64 << 20)
            resource.setrlimit(resource.RLIMIT_AS, (room, room))
            bn.linf_step_(adv, g, a, 0.1, 0.2)
            print((adv == expected).all())
        """
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
