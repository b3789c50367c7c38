"""The acyclicity measure sees cycles of every length; pruning leaves none."""

import numpy as np
import pytest
import torch

from atft_model.structure.acyclicity import log_det_acyclicity, pull_into_domain
from atft_model.structure.dag import is_acyclic, strongest_dag


def cycle(length: int, weight: float) -> np.ndarray:
    graph = np.zeros((length, length))
    for node in range(length):
        graph[node, (node + 1) % length] = weight
    return graph


def test_measure_is_zero_for_a_dag():
    dag = np.triu(np.random.default_rng(0).normal(size=(6, 6)), 1)
    assert float(log_det_acyclicity(torch.tensor(dag))) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("length", [2, 3, 6, 10])
def test_measure_and_its_gradient_see_cycles_of_any_length(length):
    graph = torch.tensor(cycle(length, 0.8), requires_grad=True)
    measure = log_det_acyclicity(graph)
    # det(I − W∘W) of one cycle is 1 − w^(2·length).
    assert float(measure.detach()) == pytest.approx(-np.log(1 - 0.8 ** (2 * length)))
    measure.backward()
    assert graph.grad is not None
    assert float(graph.grad[0, 1]) > 0


def test_a_step_out_of_the_domain_is_pulled_back():
    graph = torch.tensor(cycle(3, 1.5))
    assert pull_into_domain(graph)
    assert torch.isfinite(log_det_acyclicity(graph))
    assert not pull_into_domain(graph)


def test_cycles_are_recognised():
    assert is_acyclic(np.triu(np.ones((5, 5), dtype=bool), 1))
    assert not is_acyclic(cycle(5, 1.0) != 0)


def test_strongest_dag_gives_up_the_weakest_edge_of_a_cycle():
    graph = cycle(4, 1.0)
    graph[2, 3] = 0.1
    dag = strongest_dag(graph)
    assert is_acyclic(dag)
    assert dag.sum() == 3
    assert not dag[2, 3]
