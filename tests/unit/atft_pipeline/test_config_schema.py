"""Launchpad, ``--config-json`` and run file: the same settings, defaults and words."""

import dataclasses
from typing import Any, get_type_hints

import dagster as dg
import pytest

from atft_model.config import PRESETS, ModelConfig, RunConfig, resolve, to_dict
from atft_model.data.graph import GraphConfig
from atft_model.errors import InputError
from atft_pipeline.assets.model import run_config
from atft_pipeline.checks.evaluation import SkillGates
from atft_pipeline.checks.model import TrainingGates
from atft_pipeline.checks.prices import PricesGate
from atft_pipeline.checks.tables import PanelGate
from atft_pipeline.config_schema import build, check_run_config, fields_of, run_config_fields
from atft_pipeline.definitions import defs
from atft_pipeline.schemas import NormalizationBounds
from atft_pipeline.transforms.universe import UniverseConfig

SETTINGS = [
    GraphConfig, NormalizationBounds, PanelGate, PricesGate, SkillGates, TrainingGates,
    UniverseConfig,
]  # fmt: skip


def job() -> dg.JobDefinition:
    return defs.resolve_implicit_global_asset_job_def()


def launchpad(job: dg.JobDefinition, *path: str) -> dict[str, dg.Field]:
    """The fields at one place of the Launchpad's schema."""
    fields: Any = job.run_config_schema.run_config_schema_type.fields  # type: ignore[attr-defined]
    for level in path:
        fields = fields[level].config_type.fields
    return fields


def leaves(fields: dict[str, Any], path: str = "") -> dict[str, dg.Field]:
    found: dict[str, dg.Field] = {}
    for name, field in fields.items():
        inner = getattr(field.config_type, "fields", None)
        found |= leaves(inner, f"{path}{name}.") if inner else {f"{path}{name}": field}
    return found


@pytest.mark.parametrize("cls", SETTINGS)
def test_fields_names_defaults_and_meanings_are_those_of_the_dataclass(cls):
    fields = fields_of(cls)
    assert list(fields) == [field.name for field in dataclasses.fields(cls)]
    for field in dataclasses.fields(cls):
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        assert fields[field.name].default_value == default
        assert fields[field.name].description == field.metadata["doc"]
    assert build(cls, {name: field.default_value for name, field in fields.items()}) == cls()


def test_every_training_setting_stands_in_the_launchpad_with_its_default():
    fields = run_config_fields()
    assert list(fields) == [field.name for field in dataclasses.fields(RunConfig)]
    for section, cls in get_type_hints(RunConfig).items():
        inner = fields[section].config_type.fields  # type: ignore[attr-defined]
        assert list(inner) == [field.name for field in dataclasses.fields(cls)]
        for name, field in inner.items():
            values = {preset: to_dict(resolve(preset))[section][name] for preset in PRESETS}
            described = field.description.rpartition(" Default: ")[2]
            if len({str(value) for value in values.values()}) == 1:
                assert described == f"{values['quick']}."
            else:
                for preset, value in values.items():
                    assert f"{preset} {value}" in described


def test_every_setting_in_the_launchpad_says_what_it_means():
    whole = job()
    for asset in launchpad(whole, "ops"):
        for name, field in leaves(launchpad(whole, "ops", asset)).items():
            assert field.description or name == "config", f"{asset}: {name}"
    for resource in ("market", "storage", "split"):
        for name, field in launchpad(whole, "resources", resource, "config").items():
            assert field.description, f"{resource}: {name}"


def test_run_file_and_launchpad_mean_the_same(tmp_path):
    (tmp_path / "run.toml").write_text(
        'preset = "standard"\n[optimizer]\nclip_norm = 0.5\n[model]\nquantiles = [0.1, 0.5, 0.9]\n'
    )
    from_file = run_config({"run_file": str(tmp_path / "run.toml")})
    given = run_config(
        {"preset": "standard", "optimizer": {"clip_norm": 0.5},
         "model": {"quantiles": [0.1, 0.5, 0.9]}}
    )  # fmt: skip
    assert from_file == given
    assert from_file.model.quantiles == (0.1, 0.5, 0.9)


def test_fields_given_win_over_the_run_file_and_it_over_the_environment(tmp_path, monkeypatch):
    (tmp_path / "run.toml").write_text("[guard]\nstd_floor = 1e-5\nreset_scale = 0.2\n")
    monkeypatch.setenv("PRED_STD_FLOOR", "1e-4")
    monkeypatch.setenv("DEGENERACY_RESET_SCALE", "0.3")
    monkeypatch.setenv("VARIANCE_PENALTY_WEIGHT", "0.5")
    config = run_config(
        {"run_file": str(tmp_path / "run.toml"), "guard": {"reset_scale": 0.1}, "gates": {}}
    )
    assert config.guard.std_floor == 1e-5
    assert config.guard.reset_scale == 0.1
    assert config.loss.variance_penalty_weight == 0.5


def test_the_preset_comes_from_field_then_file_then_environment(tmp_path, monkeypatch):
    (tmp_path / "run.toml").write_text('preset = "standard"\n')
    assert run_config({}) == resolve("quick")
    monkeypatch.setenv("ATFT_PRESET", "standard")
    assert run_config({}) == resolve("standard")
    assert run_config({"preset": "quick"}) == resolve("quick")
    monkeypatch.setenv("ATFT_PRESET", "quick")
    assert run_config({"run_file": str(tmp_path / "run.toml")}) == resolve("standard")


@pytest.mark.parametrize("preset", ["standrad", "fast"])
def test_an_unknown_preset_is_an_error(preset):
    with pytest.raises(InputError, match=f"unknown preset '{preset}'; (did you mean|known)"):
        run_config({"preset": preset})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"ops": {"trained_model": {"config": {"model": {"hiden_size": 32}}}}},
         r"ops\.trained_model\.config\.model: unknown key 'hiden_size'; .* 'hidden_size'\?"),
        ({"ops": {"evaluation": {"config": {"gates": {"min_sharp": 0}}}}},
         r"ops\.evaluation\.config\.gates: unknown key 'min_sharp'; did you mean 'min_sharpe'\?"),
        ({"ops": {"raw_prices": {"config": {"seed": 5}}}},
         "raw_prices.config: unknown key 'seed'; nothing can be set here$"),
        ({"ops": {"pricse": {}}}, r"ops: unknown key 'pricse'; did you mean 'prices'\?"),
        ({"ops": {"trained_model": {"config": {"training": {"max_epochs": "x"}}}}}, "max_epochs"),
        ({"ops": {"trained_model": {"config": {"training": {"device": "tpu"}}}}}, "tpu"),
    ],
)  # fmt: skip
def test_config_that_no_asset_knows_is_one_line(config, message):
    with pytest.raises(InputError, match=message) as caught:
        check_run_config(job(), config)
    assert "\n" not in str(caught.value)


def test_the_launchpad_refuses_an_unknown_key_by_itself():
    config = {"ops": {"trained_model": {"config": {"model": {"hiden_size": 32}}}}}
    with pytest.raises(dg.DagsterInvalidConfigError, match="hiden_size"):
        dg.validate_run_config(job(), config)


def test_a_value_that_cannot_train_is_refused_wherever_it_comes_from(tmp_path):
    (tmp_path / "run.toml").write_text("[model]\nhidden_size = 4\n")
    for options in ({"run_file": str(tmp_path / "run.toml")}, {"model": {"hidden_size": 4}}):
        with pytest.raises(InputError, match=r"model\.hidden_size is 4; expected 16 to 1024"):
            run_config(options)
    assert ModelConfig().hidden_size == 64
