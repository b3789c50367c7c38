"""ATFT-GAT-FAN, in the order in which data flows through it."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from atft_model.config import ModelConfig
from atft_model.data.batches import WindowBatch
from atft_model.errors import InputError
from atft_model.model.adaptive_norm import MIXES_DAYS, adaptive_norm
from atft_model.model.gated_residual import GatedSkip
from atft_model.model.graph_attention import GraphAttention
from atft_model.model.head import PredictionHead
from atft_model.model.input_skip import InputSkip
from atft_model.model.linear_part import LinearPart
from atft_model.model.temporal import TemporalEncoder
from atft_model.model.variable_selection import VariableSelection

CPU_CHUNK_WINDOWS = 1024
"""Windows that the temporal encoder takes at a time on a CPU."""
KEPT_BYTES = {"cpu": 2**30 // 5, "cuda": 16 << 30}
"""Encoder intermediates that wait in memory for the backward pass, by device."""
ENCODER_TENSORS = 25
"""Intermediates of [windows, lookback, hidden] that the encoder keeps, about."""

MONITOR_GROUPS: dict[str, tuple[str, ...]] = {
    # The input skip is on the head's side: it must not speak for a group of the encoder.
    "prediction_head_shared": ("head.shared", "input_skip"),
    "prediction_head_heads": ("head.heads",),
    "backbone_projection": ("backbone_projection",),
    "adaptive_norm": ("adaptive_norm", "gated_residual"),
    "temporal_encoder": ("temporal_encoder", "sector_embedding", "market_embedding"),
    "input_projection": ("input_projection", "missing_day"),
    "variable_selection": ("variable_selection",),
    "gat": ("graph_attention",),
}
"""Which modules' parameters each monitor group owns: disjoint and complete."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes that come from the data, not from the settings."""

    features: int
    horizons: int
    sectors: int
    markets: int
    ranked: tuple[int, ...] = ()
    """Columns that are normalized across the stocks of a date; what the input skip reads."""
    days: tuple[int, ...] = ()
    """Days of each horizon; what a linear part weighs by."""


class ATFT(nn.Module):
    """Adaptive Temporal Fusion Transformer with graph attention over stocks.

    Variable selection → input projection → temporal encoder → graph attention over the date's
    stocks → concatenation → backbone projection → adaptive normalization → gated residual →
    prediction head on the last day. With ``input_skip`` the head also reads a short path from the
    last day's inputs. One forward path serves training, validation and prediction; behind it, and
    out of training, ``linear_part`` moves the quantiles.
    """

    def __init__(self, config: ModelConfig, shape: ModelShape) -> None:
        super().__init__()
        size, dropout = config.hidden_size, config.dropout
        self.lookback = config.lookback
        self.median = config.quantiles.index(0.5)
        self.variable_selection = VariableSelection(shape.features, size, dropout)
        self.input_projection = nn.Linear(size, size)
        self.missing_day = nn.Parameter(torch.zeros(size))
        self.sector_embedding = nn.Embedding(shape.sectors, config.static_size)
        self.market_embedding = nn.Embedding(shape.markets, config.static_size)
        self.temporal_encoder = TemporalEncoder(
            size, config.heads, config.lstm_layers, 2 * config.static_size, dropout
        )
        self.graph_attention = GraphAttention(size, config.heads, config.graph_layers, dropout)
        self.backbone_projection = nn.Linear(2 * size, size)
        self.adaptive_norm = adaptive_norm(config.adaptive_norm, size, config.lookback)
        self.mixes_days = config.adaptive_norm in MIXES_DAYS
        self.gated_residual = GatedSkip(size, dropout)
        self.head = PredictionHead(
            size, shape.horizons, config.quantiles, dropout, 2 * config.input_skip
        )
        self.input_skip = None
        if config.input_skip:
            if not shape.ranked:
                raise InputError(
                    f"panel: no feature is normalized across the stocks of a date, and "
                    f"model.input_skip {config.input_skip} reads no others; set it to 0"
                )
            self.input_skip = InputSkip(shape.ranked, config.input_skip, config.input_skip_noise)
        self.kept_bytes: int | None = None
        """In place of ``KEPT_BYTES``."""
        self.compile_seconds: float | None = None
        """What compiling its kernels took, where it has any."""
        self.linear_part = None
        if config.linear_days is not None:
            self.linear_part = LinearPart(shape.features, shape.days, config.linear_days)
        self.projected = nn.Identity()
        """Sees ``projected_features`` [windows, days, hidden]; monitors hook here."""
        self.normalized = nn.Identity()
        """Sees ``normalized_features`` [windows, days, hidden]; monitors hook here."""

    def forward(self, batch: WindowBatch) -> Float[Tensor, "runs length stocks horizons quantiles"]:
        """Quantiles of the scaled, demeaned forward return of each window.

        In training without the linear part: it fits the training dates better than any others, so
        beside it the network would learn too little.

        Windows that are not ``scorable`` get numbers too; nobody reads them, and no scorable
        window depends on them. The head reads the last day. What stands between the attention and
        the head is computed for that day alone, unless the adaptive normalization mixes days.
        """
        runs, length, stocks = batch.scorable.shape
        encoded = self.encode(self.embed_days(batch), batch.observed, self.static_context(batch))
        last = encoded[:, -1].view(runs * length, stocks, -1)
        graph = self.graph_attention(
            last, batch.neighbours.flatten(0, 1), batch.edge_attr.flatten(0, 1)
        )
        spread = graph.reshape(-1, 1, graph.shape[-1]).expand_as(encoded)
        projected = self.projected(self.backbone_projection(torch.cat([encoded, spread], dim=-1)))
        normalized = self.normalized(self.adaptive_norm(projected))
        state = self.gated_residual(normalized[:, -1], projected[:, -1])
        if self.input_skip is not None:
            today = batch.features[:, self.lookback - 1 :].flatten(0, 1)
            skip = self.input_skip(today, batch.neighbours.flatten(0, 1))
            state = torch.cat([state, skip.flatten(0, 1)], dim=-1)
        quantiles = self.head(state)
        quantiles = quantiles.view(runs, length, stocks, *quantiles.shape[1:])
        if self.linear_part is None or self.training:
            return quantiles
        today = batch.features[:, self.lookback - 1 :]
        return self.linear_part(quantiles, today, batch.scorable, self.median)

    def embed_days(self, batch: WindowBatch) -> Float[Tensor, "runs days stocks size"]:
        """Each (date, stock) once, for all windows that contain it; a missing day is learned."""
        runs, days, stocks, features = batch.features.shape
        selected, _ = self.variable_selection(batch.features.reshape(-1, features))
        embedded = self.input_projection(selected).view(runs, days, stocks, -1)
        return torch.where(batch.observed[..., None], embedded, self.missing_day.to(embedded.dtype))

    def static_context(self, batch: WindowBatch) -> Float[Tensor, "runs stocks context"]:
        """Sector and market embeddings of each stock."""
        return torch.cat(
            [self.sector_embedding(batch.sector), self.market_embedding(batch.market)], dim=-1
        )

    def encode(
        self,
        days: Float[Tensor, "runs days stocks size"],
        observed: Bool[Tensor, "runs days stocks"],
        context: Float[Tensor, "runs stocks context"],
    ) -> Float[Tensor, "windows encoded size"]:
        """The temporal encoder over all windows, in chunks of stocks.

        A stock's encoding does not depend on other stocks. A chunk's intermediates stay in a CPU's
        caches; once so many bytes of them wait for the backward pass, the rest are computed again.
        """
        kernels = self.temporal_encoder.enriched_by
        if kernels is not None and self.training and days.device.type == "cpu":
            return self.encode_by(kernels, days, observed, context)
        device = days.device.type
        room = KEPT_BYTES[device] if self.kept_bytes is None else self.kept_bytes
        number_bytes = 2 if torch.is_autocast_enabled(device) else 4
        runs, all_days, stocks, size = days.shape
        length = all_days - self.lookback + 1
        chunk = max(1, CPU_CHUNK_WINDOWS // (runs * length)) if device == "cpu" else stocks
        bytes_each = runs * length * self.lookback * size * number_bytes * ENCODER_TENSORS
        encoded, kept = [], 0
        for first in range(0, stocks, chunk):
            part = slice(first, first + chunk)
            inputs = days[:, :, part], observed[:, :, part], context[:, part]
            kept += bytes_each * min(chunk, stocks - first)
            if torch.is_grad_enabled() and kept > room:
                encoded.append(checkpoint(self.encode_chunk, *inputs, use_reentrant=False))
            else:
                encoded.append(self.encode_chunk(*inputs))
        return torch.cat(encoded, dim=2).flatten(0, 2)

    def encode_by(
        self,
        kernels: nn.Module,
        days: Float[Tensor, "runs days stocks size"],
        observed: Bool[Tensor, "runs days stocks"],
        context: Float[Tensor, "runs stocks context"],
    ) -> Float[Tensor, "windows encoded size"]:
        """``encode`` by ``native``'s kernels: up to the attention for all windows at once."""
        encoder = self.temporal_encoder
        enriched = kernels(encoder, days, context, self.lookback)
        seen = observed.unfold(1, self.lookback, 1).flatten(0, 2)
        encoded = [
            encoder.attend(some, looked_at, not self.mixes_days)
            for some, looked_at in zip(
                enriched.split(CPU_CHUNK_WINDOWS), seen.split(CPU_CHUNK_WINDOWS), strict=True
            )
        ]
        return torch.cat(encoded)

    def encode_chunk(
        self,
        days: Float[Tensor, "runs days stocks size"],
        observed: Bool[Tensor, "runs days stocks"],
        context: Float[Tensor, "runs stocks context"],
    ) -> Float[Tensor, "runs length stocks encoded size"]:
        """The temporal encoder over the overlapping windows of some stocks' days."""
        windows = days.unfold(1, self.lookback, 1).permute(0, 1, 2, 4, 3)
        shape = windows.shape[:3]
        seen = observed.unfold(1, self.lookback, 1).reshape(-1, self.lookback)
        static = context[:, None].expand(*shape, -1).reshape(-1, 1, context.shape[-1])
        encoded = self.temporal_encoder(
            windows.reshape(-1, *windows.shape[3:]), seen, static, not self.mixes_days
        )
        return encoded.view(*shape, *encoded.shape[1:])

    def keep_for_backward(self, bytes_in_all: int) -> None:
        """How many bytes of intermediates wait for a backward pass: the encoder's, two thirds, and
        variable selection's. What exceeds it is computed again."""
        self.kept_bytes = 2 * bytes_in_all // 3
        self.variable_selection.networks.kept_bytes = bytes_in_all - self.kept_bytes

    def point_score(self, quantiles: Tensor) -> Tensor:
        """The median: what stocks are ranked by."""
        return quantiles[..., self.median]

    def monitor_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """Named parameters of each monitor group.

        Raises:
            RuntimeError: a parameter that no group, or more than one, owns.
        """
        groups: dict[str, dict[str, nn.Parameter]] = {name: {} for name in MONITOR_GROUPS}
        for name, parameter in self.named_parameters():
            owners = list(_owners(name))
            if len(owners) != 1:
                raise RuntimeError(f"parameter {name} has {len(owners)} monitor groups {owners}")
            groups[owners[0]][name] = parameter
        return groups


def _owners(parameter: str) -> Iterator[str]:
    for group, modules in MONITOR_GROUPS.items():
        if any(parameter == module or parameter.startswith(f"{module}.") for module in modules):
            yield group
