"""Which features change hands together when their importance is measured.

Features that stand for each other must be in one group: permuted alone, each would look worthless
because the others still say the same. So the groups follow what is measured, not where it stands
in the docs: a stock's return less its market's is a return.
"""

from atft_pipeline.feature_registry import REGISTRY

RISK = frozenset({
    "volatility_5d", "volatility_10d", "volatility_20d", "volatility_60d", "realized_volatility",
    "bb_width", "beta_60d", "beta_stability_60d", "idio_vol_ratio",
})  # fmt: skip
"""Of the price and relative features, those of how much a stock moves, not of where it went."""
MASKS = {
    "is_flow_valid": "flows", "is_stmt_valid": "statements", "is_valid_ma": "returns",
    "is_sec_cs_valid": "sector",
}  # fmt: skip
GROUPS = {
    "price": "returns", "relative": "returns", "liquidity": "volume", "market": "market",
    "sector": "sector", "flow": "flows", "statement": "statements",
}  # fmt: skip


def importance_groups() -> dict[str, list[str]]:
    """Feature names by group, every feature of the registry in one."""
    found: dict[str, list[str]] = {}
    for feature in REGISTRY:
        if feature.name in RISK:
            group = "risk"
        elif feature.group == "mask":
            group = MASKS[feature.name]
        else:
            group = GROUPS[feature.group]
        found.setdefault(group, []).append(feature.name)
    return found
