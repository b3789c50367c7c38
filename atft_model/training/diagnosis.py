"""Names the first thing that is not finite in a batch that had to be skipped."""

import torch
from torch import Tensor, nn

from atft_model.data.batches import DevicePanel, WindowBatch
from atft_model.losses.total import TrainingLoss
from atft_model.model.atft import ATFT
from atft_model.monitors.hooked import hooked

UNSEEN = "nothing that comes back without dropout"


def batch_dates(data: DevicePanel, starts: list[int], length: int) -> str:
    """The signal dates of a batch's runs, in words."""
    dates = data.panel.dates
    return ", ".join(f"{dates[s]}..{dates[s + length - 1]}" for s in sorted(starts))


def first_offender(
    model: ATFT, batch: WindowBatch, loss: TrainingLoss, features: tuple[str, ...]
) -> str:
    """The first tensor that is not finite, in the order of the computation.

    The batch is computed again, without dropout, on the weights as they are now: a fault that
    does not come back is named so.
    """
    bad = ~torch.isfinite(batch.features).flatten(0, -2).all(dim=0)
    if bad.any():
        return f"input {features[int(bad.nonzero()[0])]}"
    if not torch.isfinite(batch.target[batch.valid]).all():
        return "target"
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"weight {name}"
    training = model.training
    model.eval()
    seen: list[str] = []
    with hooked(module.register_forward_hook(_note(name, seen))
                for name, module in model.named_modules() if name):  # fmt: skip
        total = loss(model(batch).float(), batch.target, batch.rank_target, batch.valid).total
    model.train(training)
    if seen:
        return f"output of {seen[0]}"
    if not torch.isfinite(total):
        return "loss"
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    gradients = torch.autograd.grad(total, [p for _, p in named], allow_unused=True)
    for (name, _), gradient in zip(named, gradients, strict=True):
        if gradient is not None and not torch.isfinite(gradient).all():
            return f"gradient of {name}"
    return UNSEEN


def _note(name: str, seen: list[str]):
    def on_forward(module: nn.Module, inputs: tuple, output: Tensor | tuple) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor) and not torch.isfinite(first).all():
            seen.append(name)

    return on_forward
