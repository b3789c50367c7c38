"""The temporal encoder: LSTM, static enrichment and interpretable attention over a window."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from atft_model.model.gated_residual import GatedResidualNetwork, GatedSkip


class InterpretableAttention(nn.Module):
    """Multi-head attention whose heads share their values (Lim et al. 2021, eq. 13-16).

    Sharing the value projection makes the mean of the heads' attention weights a true weighting
    of days. The window lies wholly in the past, so every day may look at every other.
    """

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_size = size // heads
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, self.head_size)
        self.output = nn.Linear(self.head_size, size, bias=False)

    def forward(
        self,
        x: Float[Tensor, "windows days size"],
        observed: Bool[Tensor, "windows days"],
        last_day_only: bool = False,
    ) -> tuple[Float[Tensor, "windows queries size"], Float[Tensor, "windows queries days"]]:
        """Attended days, and the weights [query day, key day] averaged over heads.

        ``last_day_only`` has the last day alone look at all days. Days that were not observed get
        no weight; a window without any observed day (it is never scored) weighs all days alike
        rather than giving NaN.
        """
        logits = self._last_logits(x) if last_day_only else self._all_logits(x)
        logits = logits.masked_fill(~observed[:, None, None], torch.finfo(logits.dtype).min)
        weights = torch.softmax(logits, dim=-1).mean(dim=1)
        # Weights sum to 1, so the value of a mean day is the mean of the days' values.
        mean = self.value(weights @ x) if last_day_only else weights @ self.value(x)
        return self.output(mean), weights

    def _all_logits(
        self, x: Float[Tensor, "windows days size"]
    ) -> Float[Tensor, "windows heads days days"]:
        windows, days, _ = x.shape
        split = (windows, days, self.heads, self.head_size)
        query = self.query(x).view(split).transpose(1, 2)
        key = self.key(x).view(split).transpose(1, 2)
        return query @ key.transpose(-1, -2) * self.head_size**-0.5

    def _last_logits(
        self, x: Float[Tensor, "windows days size"]
    ) -> Float[Tensor, "windows heads 1 days"]:
        """q · (K x + b) as (Kᵀ q) · x + q · b: the key matrix acts once a window, not a day."""
        query = self.query(x[:, -1]) * self.head_size**-0.5
        query = query.view(-1, self.heads, self.head_size).transpose(0, 1)
        matrix = self.key.weight.view(self.heads, self.head_size, -1)
        bias = self.key.bias.view(self.heads, self.head_size, 1)
        looking_for = torch.bmm(query, matrix).transpose(0, 1)
        shift = torch.bmm(query, bias.to(query.dtype)).transpose(0, 1)
        return (looking_for @ x.transpose(1, 2) + shift).unsqueeze(2)


class TemporalEncoder(nn.Module):
    """LSTM with gated skip, enrichment by static context, attention with gated skip.

    Lim et al. 2021, sections 4.3 to 4.5, on an encoder alone: there is no known future.
    """

    def __init__(self, size: int, heads: int, layers: int, context_size: int, dropout: float):
        super().__init__()
        self.lstm = nn.LSTM(size, size, layers, batch_first=True)
        self.lstm_skip = GatedSkip(size, dropout)
        self.enrichment = GatedResidualNetwork(size, size, dropout, context_size)
        self.attention = InterpretableAttention(size, heads)
        self.attention_skip = GatedSkip(size, dropout)
        self.enriched_by: nn.Module | None = None
        """In training on a CPU, ``enrich`` of all windows of the runs: see ``native``."""

    def forward(
        self,
        x: Float[Tensor, "windows days size"],
        observed: Bool[Tensor, "windows days"],
        context: Float[Tensor, "windows 1 context"],
        last_day_only: bool = False,
    ) -> Float[Tensor, "windows encoded size"]:
        """One encoding per day of each window, or that of its last day alone."""
        return self.attend(self.enrich(x, context), observed, last_day_only)

    def enrich(
        self, x: Float[Tensor, "windows days size"], context: Float[Tensor, "windows 1 context"]
    ) -> Float[Tensor, "windows days size"]:
        """Each day with what came before it in its window, and with the static context."""
        recurrent, _ = self.lstm(x)
        return self.enrichment(self.lstm_skip(recurrent, x), context)

    def attend(
        self,
        enriched: Float[Tensor, "windows days size"],
        observed: Bool[Tensor, "windows days"],
        last_day_only: bool,
    ) -> Float[Tensor, "windows encoded size"]:
        """Each day, or the last, with what it attends to."""
        attended, _ = self.attention(enriched, observed, last_day_only)
        return self.attention_skip(attended, enriched[:, -attended.shape[1] :])
