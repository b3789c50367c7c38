"""ATFT-GAT-FAN written slowly, from the papers: one feature, day, head and stock at a time.

In float64. Each function takes a module's weights (``weights_of``) and plain tensors. Nothing of
``atft_model`` is called; what is known of it are the names of its parameters. Gradients flow back
through the conversion to float64, so both sides are compared on the same parameters. No dropout.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

Weights = Mapping[str, Tensor]


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """The module's parameters by name, in float64."""
    return {name: parameter.double() for name, parameter in module.named_parameters()}


def part(weights: Weights, name: str) -> dict[str, Tensor]:
    """The weights of a submodule."""
    prefix = f"{name}."
    return {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}


def linear(weights: Weights, x: Tensor) -> Tensor:
    """W x (+ b)."""
    product = x @ weights["weight"].T
    return product + weights["bias"] if "bias" in weights else product


def layer_norm(weights: Weights, x: Tensor) -> Tensor:
    """Over the last axis; population variance, eps 1e-5."""
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = (centred**2).mean(dim=-1, keepdim=True)
    return centred / torch.sqrt(variance + 1e-5) * weights["weight"] + weights["bias"]


def fan_san(weights: Weights, x: Tensor, slices: Sequence[tuple[int, int]]) -> Tensor:
    """FAN (Ye et al. 2024) then SAN (Liu et al. 2023), one channel, frequency and slice at a time.

    Args:
        x: One window [days, size]; lookback sets the frequencies.
        slices: (first, last) day of each.
    """
    days = len(x)
    channels = []
    for channel in range(x.shape[1]):
        series = x[:, channel]
        main = torch.zeros_like(series)
        for frequency in largest_frequencies(series.detach(), count=2):
            main = main + fourier_component(series, frequency)
        back = weights["0.returned"][channel]
        series = series - main + back * main
        found: list[list[Tensor]] = [[] for _ in range(days)]
        for first, last in slices:
            part = [series[day] for day in range(first, last)]
            mean = sum(part, torch.zeros((), dtype=x.dtype)) / len(part)
            variance = sum(((value - mean) ** 2 for value in part), mean * 0) / len(part)
            for day, value in zip(range(first, last), part, strict=True):
                normed = (value - mean) / torch.sqrt(variance + 1e-5)
                found[day].append(
                    normed * weights["1.weight"][channel] + weights["1.bias"][channel]
                )
        zero = series[0] * 0
        channels.append(torch.stack([sum(f, zero) / max(len(f), 1) for f in found]))
    return torch.stack(channels, dim=1)


def fourier_component(series: Tensor, frequency: int) -> Tensor:
    """What one frequency (and its mirror image) contributes to a real series."""
    days = len(series)
    angle = 2 * torch.pi * frequency * torch.arange(days, dtype=series.dtype) / days
    cosine, sine = (series * torch.cos(angle)).sum(), (series * torch.sin(angle)).sum()
    mirrored = 1.0 if 2 * frequency in (0, days) else 2.0
    return mirrored / days * (cosine * torch.cos(angle) + sine * torch.sin(angle))


def largest_frequencies(series: Tensor, count: int) -> list[int]:
    """Of the Fourier coefficients at 0 to days / 2, those of the largest magnitude."""
    days = len(series)
    size = {}
    for frequency in range(days // 2 + 1):
        angle = 2 * torch.pi * frequency * torch.arange(days, dtype=series.dtype) / days
        size[frequency] = float(
            (series * torch.cos(angle)).sum() ** 2 + (series * torch.sin(angle)).sum() ** 2
        )
    return sorted(size, key=lambda frequency: -size[frequency])[:count]


def gated_skip(weights: Weights, x: Tensor, skip: Tensor) -> Tensor:
    """LayerNorm(skip + (W4 x + b4) * sigmoid(W5 x + b5)); W4 and W5 stand in one matrix."""
    value, gate = linear(part(weights, "gate"), x).chunk(2, dim=-1)
    return layer_norm(part(weights, "norm"), skip + value / (1 + torch.exp(-gate)))


def gated_residual_network(weights: Weights, x: Tensor, context: Tensor | None = None) -> Tensor:
    """GRN(a, c) of Lim et al. 2021, eq. 2-4; the skip is linear where sizes differ."""
    inner = linear(part(weights, "input"), x)
    if context is not None:
        inner = inner + linear(part(weights, "context"), context)
    inner = torch.where(inner > 0, inner, torch.exp(inner.clamp(max=0)) - 1)
    skip = linear(part(weights, "skip"), x) if "skip.weight" in weights else x
    return gated_skip(part(weights, "gated_skip"), linear(part(weights, "hidden"), inner), skip)


def feature_network(networks: Weights, j: int) -> dict[str, Tensor]:
    """Feature j's weights, out of the tensors that hold those of all features, as one GRN's."""
    return {
        "input.weight": networks["input_weight"][j].reshape(-1, 1),
        "input.bias": networks["input_bias"][j].reshape(-1),
        "skip.weight": networks["skip_weight"][j].reshape(-1, 1),
        "skip.bias": networks["skip_bias"][j].reshape(-1),
        "hidden.weight": networks["hidden_weight"][j].T,
        "hidden.bias": networks["hidden_bias"][j].reshape(-1),
        "gated_skip.gate.weight": networks["gate_weight"][j].T,
        "gated_skip.gate.bias": networks["gate_bias"][j].reshape(-1),
        "gated_skip.norm.weight": networks["norm_weight"][j].reshape(-1),
        "gated_skip.norm.bias": networks["norm_bias"][j].reshape(-1),
    }


def variable_selection(weights: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
    """Lim et al. 2021, eq. 6-8: a GRN per feature, mixed by a softmax over features.

    Args:
        x: [rows, features].

    Returns:
        The mixture [rows, size] and the selection weights [rows, features].
    """
    powers = torch.exp(gated_residual_network(part(weights, "weights"), x))
    share = powers / powers.sum(dim=-1, keepdim=True)
    networks = part(weights, "networks")
    mixed = torch.zeros((), dtype=x.dtype)
    for j in range(x.shape[1]):
        one = gated_residual_network(feature_network(networks, j), x[:, j : j + 1])
        mixed = mixed + share[:, j : j + 1] * one
    return mixed, share


def lstm(weights: Weights, x: Tensor, layers: int) -> Tensor:
    """Unrolled day by day; gates in the order input, forget, cell, output. x: [days, size]"""
    for layer in range(layers):
        size = weights[f"weight_hh_l{layer}"].shape[1]
        hidden = cell = torch.zeros(size, dtype=x.dtype)
        outputs = []
        for day in x:
            gates = (
                weights[f"weight_ih_l{layer}"] @ day
                + weights[f"bias_ih_l{layer}"]
                + weights[f"weight_hh_l{layer}"] @ hidden
                + weights[f"bias_hh_l{layer}"]
            )
            enter, forget, candidate, leave = gates.chunk(4)
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(candidate)
            hidden = torch.sigmoid(leave) * torch.tanh(cell)
            outputs.append(hidden)
        x = torch.stack(outputs)
    return x


def attention(
    weights: Weights, x: Tensor, observed: Sequence[bool], heads: int
) -> tuple[Tensor, Tensor]:
    """Lim et al. 2021, eq. 13-16, over the observed days only. x: [days, size]

    A window without an observed day weighs all of them alike.

    Returns:
        Attended days [days, size] and the weights averaged over heads [days, days].
    """
    query, key = linear(part(weights, "query"), x), linear(part(weights, "key"), x)
    value = linear(part(weights, "value"), x)
    days, size = x.shape
    width = size // heads
    seen = [day for day in range(days) if observed[day]]
    rows = []
    for day in range(days):
        row = torch.zeros(days, dtype=x.dtype)
        for head in range(heads):
            columns = slice(head * width, (head + 1) * width)
            if not seen:
                row = row + torch.full((days,), 1.0 / days, dtype=x.dtype)
                continue
            logits = torch.stack(
                [(query[day, columns] * key[other, columns]).sum() / width**0.5 for other in seen]
            )
            row = row.index_add(0, torch.tensor(seen), softmax(logits))
        rows.append(row / heads)
    shares = torch.stack(rows)
    return linear(part(weights, "output"), shares @ value), shares


def softmax(logits: Tensor) -> Tensor:
    """Of a vector."""
    powers = torch.exp(logits - logits.detach().max())
    return powers / powers.sum()


def temporal_encoder(
    weights: Weights, x: Tensor, observed: Sequence[bool], context: Tensor, heads: int, layers: int
) -> Tensor:
    """One window, [days, size]; context [context size]."""
    recurrent = lstm(part(weights, "lstm"), x, layers)
    local = gated_skip(part(weights, "lstm_skip"), recurrent, x)
    enriched = gated_residual_network(part(weights, "enrichment"), local, context)
    attended, _ = attention(part(weights, "attention"), enriched, observed, heads)
    return gated_skip(part(weights, "attention_skip"), attended, enriched)


def gatv2(
    weights: Weights, x: Tensor, neighbours: Sequence[Sequence[int]], edge_attr: Tensor, heads: int
) -> Tensor:
    """Brody et al. 2022 with edge attributes, stock by stock. x: [stocks, size]

    Args:
        neighbours: of each stock [stocks][k]; -1 is none.
        edge_attr: [stocks, k, attributes].
    """
    source = linear(part(weights, "lin_l"), x)
    target = linear(part(weights, "lin_r"), x)
    width = x.shape[1] // heads
    rows = []
    for stock, listed in enumerate(neighbours):
        known = [(place, int(other)) for place, other in enumerate(listed) if other >= 0]
        outputs = []
        for head in range(heads):
            columns = slice(head * width, (head + 1) * width)
            if not known:
                outputs.append(torch.zeros(width, dtype=x.dtype))
                continue
            logits = []
            for place, other in known:
                edge = linear(part(weights, "lin_edge"), edge_attr[stock, place])
                inner = (source[other] + target[stock] + edge)[columns]
                leaky = torch.where(inner > 0, inner, 0.2 * inner)
                logits.append((weights["att"][0, head] * leaky).sum())
            shares = softmax(torch.stack(logits))
            outputs.append(shares @ torch.stack([source[other, columns] for _, other in known]))
        rows.append(torch.cat(outputs) + weights["bias"])
    return torch.stack(rows)


def graph_attention(
    weights: Weights, x: Tensor, neighbours: Sequence[Sequence[int]], edge_attr: Tensor, heads: int
) -> Tensor:
    """Layers of GATv2 behind gated skips, on one date."""
    for layer in layers_in(weights, "convolutions"):
        messages = gatv2(part(weights, f"convolutions.{layer}"), x, neighbours, edge_attr, heads)
        x = gated_skip(part(weights, f"skips.{layer}"), messages, x)
    return x


def layers_in(weights: Weights, name: str) -> Iterator[int]:
    """Positions in a module list, in order."""
    yield from sorted({int(key.split(".")[1]) for key in weights if key.startswith(f"{name}.")})


def quantile_head(weights: Weights, x: Tensor, median: int) -> Tensor:
    """A free median and softplus steps outwards, added up one by one. x: [size]"""
    raw = linear(part(weights, "linear"), x)
    steps = torch.log1p(torch.exp(raw))
    quantiles = {median: raw[median]}
    for level in range(median + 1, len(raw)):
        quantiles[level] = quantiles[level - 1] + steps[level]
    for level in range(median - 1, -1, -1):
        quantiles[level] = quantiles[level + 1] - steps[level]
    return torch.stack([quantiles[level] for level in range(len(raw))])


def prediction_head(weights: Weights, x: Tensor, median: int) -> Tensor:
    """[horizons, quantiles] of one window's state [size]."""
    shared = gated_residual_network(part(weights, "shared"), x)
    return torch.stack(
        [
            quantile_head(part(weights, f"heads.{horizon}"), shared, median)
            for horizon in layers_in(weights, "heads")
        ]
    )


def input_skip(
    weights: Weights, x: Tensor, neighbours: Sequence[Sequence[int]], ranked: Sequence[int]
) -> Tensor:
    """Each stock's units, then its neighbours' mean ones [stocks, 2 units]; x: the last day.

    Gated linear units of each stock's ranked features; 0 for the neighbours of who has none.
    """
    units = []
    for row in x:
        value, gate = linear(part(weights, "units"), row[list(ranked)]).chunk(2)
        units.append(value / (1 + torch.exp(-gate)))
    both = []
    for stock, listed in enumerate(neighbours):
        known = [units[int(other)] for other in listed if other >= 0]
        others = torch.stack(known).mean(dim=0) if known else torch.zeros_like(units[stock])
        both.append(torch.cat([units[stock], others]))
    return torch.stack(both)


def atft_of_one_date(
    weights: Weights,
    windows: Tensor,
    observed: Tensor,
    sector: Sequence[int],
    market: Sequence[int],
    neighbours: Sequence[Sequence[int]],
    edge_attr: Tensor,
    heads: int,
    layers: int,
    median: int,
    slices: Sequence[tuple[int, int]] | None = None,
    ranked: Sequence[int] = (),
) -> Tensor:
    """Quantiles [stocks, horizons, quantiles] of one date, each stock's window computed alone.

    Args:
        windows: float64 [stocks, days, features]; observed: bool [stocks, days].
        slices: Of the adaptive normalization where it is FAN and SAN; else it is a LayerNorm.
        ranked: Columns that the input skip reads, where the model has one.
    """
    encoded = []
    for stock, window in enumerate(windows):
        mixed, _ = variable_selection(part(weights, "variable_selection"), window)
        embedded = linear(part(weights, "input_projection"), mixed)
        days = [
            embedded[day] if observed[stock, day] else weights["missing_day"]
            for day in range(len(window))
        ]
        context = torch.cat(
            [
                weights["sector_embedding.weight"][int(sector[stock])],
                weights["market_embedding.weight"][int(market[stock])],
            ]
        )
        encoded.append(
            temporal_encoder(
                part(weights, "temporal_encoder"), torch.stack(days), observed[stock].tolist(),
                context, heads, layers,
            )
        )  # fmt: skip
    last = torch.stack([window[-1] for window in encoded])
    graph = graph_attention(part(weights, "graph_attention"), last, neighbours, edge_attr, heads)
    skip = part(weights, "input_skip")
    short = input_skip(skip, windows[:, -1], neighbours, ranked) if skip else None
    quantiles = []
    for stock in range(len(windows)):
        days = [torch.cat([day, graph[stock]]) for day in encoded[stock]]
        projected = linear(part(weights, "backbone_projection"), torch.stack(days))
        if slices is None:
            normalized = layer_norm(part(weights, "adaptive_norm"), projected)
        else:
            normalized = fan_san(part(weights, "adaptive_norm"), projected, slices)
        state = gated_skip(part(weights, "gated_residual"), normalized[-1], projected[-1])
        if short is not None:
            state = torch.cat([state, short[stock]])
        quantiles.append(prediction_head(part(weights, "head"), state, median))
    return torch.stack(quantiles)
