"""Every feature changes hands in exactly one group, with those that say the same."""

from atft_pipeline.feature_registry import REGISTRY
from atft_pipeline.importance_groups import RISK, importance_groups


def test_every_feature_is_in_exactly_one_group():
    listed = [name for group in importance_groups().values() for name in group]
    assert sorted(listed) == sorted(feature.name for feature in REGISTRY)


def test_the_names_that_are_spelled_out_exist():
    assert {feature.name for feature in REGISTRY} > RISK


def test_returns_and_what_they_are_less_another_return_go_together():
    groups = importance_groups()
    assert {"returns_1d", "alpha_1d", "rel_strength_5d", "rsi_14"} < set(groups["returns"])
    of_risk = {f.name for f in REGISTRY if f.name.startswith(("volatility", "realized", "beta"))}
    assert len(of_risk) == 7
    assert of_risk | {"bb_width", "idio_vol_ratio"} == set(groups["risk"])
    assert set(groups) == {
        "returns", "risk", "volume", "market", "sector", "flows", "statements"
    }  # fmt: skip
