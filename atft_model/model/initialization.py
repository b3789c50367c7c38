"""First weights: torch's own, or the conservative ones of the ``stable`` preset."""

from torch import nn

from atft_model.config import ModelConfig
from atft_model.model.atft import ATFT

WITHOUT_SKIP = (
    "input_projection", "backbone_projection", "head.shared.skip", "head.heads", "input_skip",
)  # fmt: skip


def initialize(model: ATFT, config: ModelConfig) -> None:
    """Replaces torch's initialization where the settings ask for it.

    ``init_gain`` (Glorot & Bengio 2010) is for the linear layers of branches: with a small gain a
    block begins as its skip connection. Layers without a skip beside them keep their own: what
    follows them divides by the spread of their output (a LayerNorm; for the heads the rank
    correlation and the variance penalty), so their gradient would grow by 1 / gain. With a gain of
    0.01 everywhere the first gradient norm was 67, and the emergency brake skipped every step. The
    stacked networks of variable selection keep their own too: they are no plain linear layers.
    """
    for name, module in model.named_modules():
        if (
            isinstance(module, nn.Linear)
            and config.init_gain is not None
            and not name.startswith(WITHOUT_SKIP)
        ):
            nn.init.xavier_uniform_(module.weight, gain=config.init_gain)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.LSTM) and config.orthogonal_lstm:
            for part, weight in module.named_parameters():
                if part.startswith("weight_hh"):
                    for gate in weight.detach().chunk(4):
                        nn.init.orthogonal_(gate)
