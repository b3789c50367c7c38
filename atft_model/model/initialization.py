"""First weights: torch's own, or the conservative ones of the ``stable`` preset."""

from torch import nn

from atft_model.config import ModelConfig


def initialize(model: nn.Module, config: ModelConfig) -> None:
    """Replaces torch's initialization where the settings ask for it.

    ``init_gain`` is for the plain linear layers (Glorot & Bengio 2010); the stacked networks of
    variable selection keep their own, because a gain of 0.01 through each of their three layers
    would leave a feature nothing to be selected by.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) and config.init_gain is not None:
            nn.init.xavier_uniform_(module.weight, gain=config.init_gain)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.LSTM) and config.orthogonal_lstm:
            for name, weight in module.named_parameters():
                if name.startswith("weight_hh"):
                    for gate in weight.detach().chunk(4):
                        nn.init.orthogonal_(gate)
