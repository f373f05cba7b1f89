"""Solver rows against their textbook forms and on an ODE with a known solution."""

import math
from itertools import pairwise

import numpy as np
import pytest

from framert.runtime.errors import ConfigError
from framert.runtime.solvers import SOLVERS, dpmpp_2m, euler, find, heun

ORDERS = {"euler": euler.ORDER, "heun": heun.ORDER, "dpmpp_2m": dpmpp_2m.ORDER}


def integrate(name, sigmas, velocity, sample):
    history = np.zeros_like(sample)
    for call in SOLVERS[name](list(sigmas)):
        v = velocity(sample, call.sigma)
        a, b, c, d, e, f = call.row
        sample, history = a * sample + b * v + c * history, d * sample + e * v + f * history
    return sample


def gaussian_velocity(x, sigma, mean=0.7, deviation=0.3):
    """The exact flow-matching velocity when the data is one Gaussian: E[noise - data | x]."""
    variance = (1 - sigma) ** 2 * deviation**2 + sigma**2
    centred = x - (1 - sigma) * mean
    data = mean + (1 - sigma) * deviation**2 / variance * centred
    noise = sigma / variance * centred
    return noise - data


def gaussian_solution(x, start, end, mean=0.7, deviation=0.3):
    """The probability-flow ODE of a Gaussian moves every quantile with it."""
    scale = [math.sqrt((1 - s) ** 2 * deviation**2 + s**2) for s in (start, end)]
    return (1 - end) * mean + (x - (1 - start) * mean) * scale[1] / scale[0]


@pytest.mark.parametrize("name", SOLVERS)
def test_convergence_order(name):
    start, end, sample = 0.95, 0.05, np.linspace(-1.0, 2.0, 7)
    exact = gaussian_solution(sample, start, end)
    errors = []
    for steps in (32, 64, 128):
        got = integrate(name, np.linspace(start, end, steps + 1), gaussian_velocity, sample)
        errors.append(np.abs(got - exact).max())
    measured = [math.log2(errors[i] / errors[i + 1]) for i in range(2)]
    assert measured[-1] == pytest.approx(ORDERS[name], abs=0.15)


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_heun_matches_textbook_form(steps):
    sigmas = [*np.linspace(1, 1 / steps, steps).tolist(), 0.0]
    x = exact = np.array([0.3, -1.2, 2.0])
    for now, after in pairwise(sigmas):
        v = gaussian_velocity(exact, now)
        predicted = exact + (after - now) * v
        if after:
            v = (v + gaussian_velocity(predicted, after)) / 2
        exact = exact + (after - now) * v
    np.testing.assert_allclose(integrate("heun", sigmas, gaussian_velocity, x), exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20])
def test_dpmpp_2m_matches_textbook_form(steps):
    """In the data-prediction form of the paper: x' = sigma'/sigma x - alpha' (e^-h - 1) D."""
    sigmas = [*np.linspace(1, 1 / steps, steps).tolist(), 0.0]
    x = exact = np.array([0.3, -1.2, 2.0])
    data_before = None
    for index, (now, after) in enumerate(pairwise(sigmas)):
        data = exact - now * gaussian_velocity(exact, now)
        estimate = data
        if index and sigmas[index - 1] != 1.0 and after:
            lambdas = [math.log((1 - s) / s) for s in (sigmas[index - 1], now, after)]
            r = (lambdas[1] - lambdas[0]) / (lambdas[2] - lambdas[1])
            estimate = (1 + 1 / (2 * r)) * data - 1 / (2 * r) * data_before
        # alpha' (1 - e^-h) = alpha' - alpha sigma' / sigma
        exact = after / now * exact + ((1 - after) - (1 - now) * after / now) * estimate
        data_before = data
    np.testing.assert_allclose(integrate("dpmpp_2m", sigmas, gaussian_velocity, x), exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("name", SOLVERS)
def test_every_interval_completes_once_and_in_order(name, steps):
    sigmas = [*np.linspace(1, 1 / steps, steps).tolist(), 0.0]
    calls = SOLVERS[name](sigmas)
    assert [call.interval for call in calls if call.interval is not None] == list(range(steps))
    assert len(calls) == (2 * steps - 1 if name == "heun" else steps)
    assert calls[-1].after == 0.0
    assert np.isfinite([call.row for call in calls]).all()


def test_unknown_solver_names_the_known():
    with pytest.raises(ConfigError, match=r"'ddim'.*euler, heun, dpmpp_2m"):
        find("ddim")
