"""The gradient stage: proposes an order and an adjacency, and records the health of its learning.

Each series is split three ways, and no part sees the series it explains or mixes series except
through the adjacency:

- signal: Σ over parents, today and lagged: the adjacency is the only route between variables;
- bias: one level per series;
- noise: what is left, Student-t with a size per series.

The loss has four terms, each a mean over series: the negative log likelihood (recon), the size of
the effects (sparse), the log-det acyclicity (acyclic) and the squared correlation of a series' own
signal and noise (disen).
"""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from atft_model.structure.acyclicity import log_det_acyclicity, pull_into_domain
from atft_model.structure.config import GradientConfig, SearchConfig
from atft_model.structure.dag import strongest_dag
from atft_model.structure.health import EpochHealth, Truth, read_health
from atft_model.structure.order_search import LocalScores
from atft_model.structure.series import Table
from atft_model.structure.threshold import Threshold, choose_threshold

START_DEGREES = 8.0
"""Degrees of freedom of the noise before the first step: between normal and daily returns."""


class StructureModel(nn.Module):
    """Reconstruction of every series from its parents."""

    off_diagonal: Float[Tensor, "series series"]

    def __init__(self, series: int, lags: int) -> None:
        super().__init__()
        self.instant = nn.Parameter(torch.zeros(series, series))
        self.lagged = nn.Parameter(torch.zeros(lags, series, series))
        self.bias = nn.Parameter(torch.zeros(series))
        self.log_scale = nn.Parameter(torch.zeros(series))
        self.log_degrees = nn.Parameter(torch.full((series,), math.log(START_DEGREES - 2)))
        self.register_buffer("off_diagonal", 1 - torch.eye(series))

    @property
    def adjacency(self) -> Float[Tensor, "series series"]:
        """Today's effects; a series never explains itself."""
        return self.instant * self.off_diagonal

    def signal(self, rows: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows series"]:
        """What the parents say: the only place where series meet."""
        series = len(self.bias)
        today, past = rows[:, :series], rows[:, series:]
        return today @ self.adjacency + past @ self.lagged.reshape(-1, series)

    def reconstruct(self, rows: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows series"]:
        """Signal plus bias."""
        return self.signal(rows) + self.bias

    def negative_log_likelihood(
        self, noise: Float[Tensor, "rows series"], observed: Bool[Tensor, "rows series"]
    ) -> Float[Tensor, ""]:
        """Mean over observed values of minus the log density of Student-t noise.

        Today's edges also change volume, by log|det(I − W)|: without it a cycle could explain
        two series by each other for nothing.
        """
        degrees = 2 + torch.exp(self.log_degrees)
        scaled = noise * torch.exp(-self.log_scale)
        log_density = (
            torch.lgamma((degrees + 1) / 2) - torch.lgamma(degrees / 2)
            - 0.5 * torch.log(degrees * math.pi) - self.log_scale
            - (degrees + 1) / 2 * torch.log1p(scaled**2 / degrees)
        )  # fmt: skip
        identity = torch.eye(len(self.bias))
        volume = torch.linalg.slogdet(identity - self.adjacency)[1] / len(self.bias)
        return -(log_density * observed).sum() / observed.sum() - volume


@dataclass(frozen=True)
class Proposal:
    """What the gradient stage hands on."""

    instant: Float[np.ndarray, "series series"]
    lagged: Float[np.ndarray, "lags series series"]
    threshold: Threshold
    order: tuple[int, ...]
    health: tuple[EpochHealth, ...]
    validation_log_likelihood: float
    """Per observed value, of the weights handed on (the best epoch of the last stage)."""
    routes: dict[str, float]
    """Evidence that the adjacency is the route between series: see ``adjacency_routes``."""


def propose(
    table: Table,
    config: GradientConfig,
    search: SearchConfig,
    seed: int,
    truth: Truth | None = None,
) -> Proposal:
    """Trains the model through the acyclicity schedule.

    Args:
        truth: Known graph; fills the health record's scores and is used for nothing else.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.from_numpy(table.rows).float()
    observed = torch.from_numpy(table.observed[:, : table.series])
    cut = len(rows) - max(1, round(config.validation_share * len(rows)))
    model = StructureModel(table.series, table.lags)
    scores = LocalScores(
        table.correlation, table.effective_rows, math.log(table.effective_rows)
        + 2 * search.extra_penalty * math.log(table.rows.shape[1] - 1), table.series,
    )  # fmt: skip
    health: list[EpochHealth] = []
    best_state, best_likelihood = _state(model), -math.inf
    schedule = config.acyclic_schedule
    for stage, factor in enumerate(schedule):
        late = stage >= len(schedule) / 2
        rate = config.late_learning_rate if late else config.learning_rate
        adjacency = [model.instant, model.lagged]
        others = [model.bias, model.log_scale, model.log_degrees]
        optimizer = torch.optim.Adam(
            [{"params": adjacency, "weight_decay": config.weight_decay}, {"params": others}],
            lr=rate,
        )
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", threshold_mode="abs", factor=config.plateau_factor,
            patience=config.plateau_patience, cooldown=config.plateau_cooldown,
        )  # fmt: skip
        best_likelihood, waited = -math.inf, 0
        for _ in range(config.epochs_per_stage):
            started = time.perf_counter()
            weight = config.lambda_acyclic * factor
            readings = _epoch(model, optimizer, rows[:cut], observed[:cut], config, weight,
                              generator)  # fmt: skip
            with torch.no_grad():
                noise = rows[cut:, : table.series] - model.reconstruct(rows[cut:])
                likelihood = -float(model.negative_log_likelihood(noise, observed[cut:]))
            plateau.step(likelihood)
            health.append(
                read_health(
                    len(health), *_weights(model), scores, truth,
                    readings | {
                        "validation_log_likelihood": likelihood,
                        "acyclicity": float(log_det_acyclicity(model.adjacency.detach())),
                        "acyclic_weight": weight,
                        "learning_rate": optimizer.param_groups[0]["lr"],
                        "seconds": time.perf_counter() - started,
                    },
                )
            )  # fmt: skip
            waited += 1
            if likelihood > best_likelihood:
                best_state, best_likelihood, waited = _state(model), likelihood, 0
            if stage == len(schedule) - 1 and waited >= config.early_stopping_patience:
                break
    routes = adjacency_routes(model, rows[:cut], generator)
    model.load_state_dict(best_state)
    instant, lagged = _weights(model)
    return Proposal(
        instant, lagged, choose_threshold(instant, lagged, scores), _order(instant),
        tuple(health), best_likelihood, routes,
    )  # fmt: skip


def _epoch(
    model: StructureModel,
    optimizer: torch.optim.Optimizer,
    rows: Tensor,
    observed: Tensor,
    config: GradientConfig,
    acyclic_weight: float,
    generator: torch.Generator,
) -> dict[str, float]:
    """One pass over the training rows; returns the means of its readings."""
    sums: dict[str, float] = {}
    batches = torch.randperm(len(rows), generator=generator).split(config.batch_rows)
    for batch in batches:
        part, seen = rows[batch], observed[batch]
        signal = model.signal(part)
        noise = part[:, : signal.shape[1]] - signal - model.bias
        terms = {
            "recon": model.negative_log_likelihood(noise, seen),
            "sparse": (model.adjacency.abs().sum() + model.lagged.abs().sum()) / signal.shape[1],
            "acyclic": log_det_acyclicity(model.adjacency) / signal.shape[1],
            "disen": _shared_variance(signal, noise),
        }
        loss = (
            config.lambda_recon * terms["recon"] + config.lambda_sparse * terms["sparse"]
            + acyclic_weight * terms["acyclic"] + config.lambda_disen * terms["disen"]
        )  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        reaching = torch.cat([g.flatten() for g in _gradients(model)]).norm()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        pulled = pull_into_domain(model.instant.data.mul_(model.off_diagonal))
        readings = {f"loss_{name}": value for name, value in terms.items()} | {
            "loss_total": loss, "gradient_norm": norm, "adjacency_gradient": reaching,
            "clip_ratio": float(norm > config.clip_norm), "pulled_back": float(pulled),
        }  # fmt: skip
        for name, value in readings.items():
            sums[name] = sums.get(name, 0.0) + float(torch.as_tensor(value).detach()) / len(batches)
    return sums


def _shared_variance(signal: Tensor, noise: Tensor) -> Tensor:
    """Squared correlation of signal and noise within each series, mean over series."""
    signal, noise = signal - signal.mean(0), noise - noise.mean(0)
    shared = (signal * noise).mean(0) ** 2
    return (shared / (signal.var(0) * noise.var(0) + 1e-8)).mean()


@torch.no_grad()
def _permuted_change(model: StructureModel, rows: Tensor, generator: torch.Generator) -> float:
    """Mean absolute change of the reconstruction when the effects' places are permuted."""
    before = model.reconstruct(rows)
    kept = [model.instant.clone(), model.lagged.clone()]
    for parameter in (model.instant, model.lagged):
        flat = parameter.flatten()
        parameter.copy_(flat[torch.randperm(len(flat), generator=generator)].reshape_as(parameter))
    change = float((model.reconstruct(rows) - before).abs().mean())
    model.instant.copy_(kept[0])
    model.lagged.copy_(kept[1])
    return change


def adjacency_routes(
    model: StructureModel, rows: Tensor, generator: torch.Generator
) -> dict[str, float]:
    """Evidence that series meet in the adjacency and nowhere else.

    Returns:
        ``gradient_instant`` and ``gradient_lagged``: norm of the reconstruction error's gradient
        there; ``permuted_change``: how far permuted effects move the reconstruction;
        ``leak``: largest effect of one series on another's reconstruction with the adjacency zero.
    """
    series = len(model.bias)
    model.zero_grad()
    (rows[:, :series] - model.reconstruct(rows)).square().mean().backward()
    gradients = _gradients(model)
    routes = {
        "gradient_instant": float(gradients[0].norm()),
        "gradient_lagged": float(gradients[1].norm()),
        "permuted_change": _permuted_change(model, rows, generator),
    }
    kept = [model.instant.detach().clone(), model.lagged.detach().clone()]
    with torch.no_grad():
        model.instant.zero_()
        model.lagged.zero_()
        shuffled = rows[torch.randperm(len(rows), generator=generator)]
        leak = (model.reconstruct(rows) - model.reconstruct(shuffled)).abs().max()
        model.instant.copy_(kept[0])
        model.lagged.copy_(kept[1])
    return routes | {"leak": float(leak)}


def _gradients(model: StructureModel) -> tuple[Tensor, Tensor]:
    """What the last backward pass left on the adjacency."""
    instant, lagged = model.instant.grad, model.lagged.grad
    assert instant is not None
    assert lagged is not None
    return instant, lagged


def _weights(model: StructureModel) -> tuple[np.ndarray, np.ndarray]:
    return (
        model.adjacency.detach().numpy().astype(float),
        model.lagged.detach().numpy().astype(float),
    )


def _state(model: StructureModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _order(instant: np.ndarray) -> tuple[int, ...]:
    """An order of the strongest DAG inside the adjacency."""
    dag = strongest_dag(instant)
    depth = np.zeros(len(dag), dtype=int)
    for _ in range(len(dag)):
        depth = np.maximum(depth, np.where(dag, depth[:, None] + 1, 0).max(axis=0))
    return tuple(int(i) for i in np.argsort(depth, kind="stable"))
