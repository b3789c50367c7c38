import pytest

from atft_model import settings
from atft_model.config import RunConfig, from_dict, read_run_file, resolve, to_dict
from atft_model.errors import InputError


def test_unknown_key_names_the_nearest():
    with pytest.raises(InputError, match=r"did you mean 'optimizer\.clip_norm'"):
        resolve("quick", [("run.toml", {"optimizer": {"clip_nrom": 1.0}})])


def test_unknown_preset():
    with pytest.raises(InputError, match="did you mean 'quick'"):
        resolve("quik")


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("model", {"hidden_size": 30}, "not divisible"),
        ("model", {"hidden_size": "wide"}, "expected int"),
        ("training", {"device": "tpu"}, "expected one of"),
        ("model", {"quantiles": [0.1, 0.9]}, "contain 0.5"),
        ("training", {"max_epochs": 0}, "at least 1"),
        (
            "training",
            {"keep": "last", "early_stopping_patience": 6},
            r"training\.keep is 'last' with an early_stopping_patience of 6",
        ),
        ("model", {"linear_days": 0.0}, r"model\.linear_days is 0\.0; expected above 0"),
        (
            "model",
            {"linear_penalty": 1.0},
            r"model\.linear_penalty is 1\.0; expected 0 up to below",
        ),
        ("model", {"input_skip": -1}, r"model\.input_skip is -1; expected at least 0"),
        ("model", {"input_skip_noise": -0.5}, "expected at least 0"),
        ("loss", {"horizon_power": -1.0}, "expected at least 0"),
        ("optimizer", {"warmup_steps": -1}, "expected at least 0"),
        ("training", {"kept_gib": -0.5}, r"training\.kept_gib is -0\.5; expected at least 0"),
        ("optimizer", {"short_path_rate": 0.0}, "expected above 0"),
        (
            "optimizer",
            {"schedule": "cosine", "learning_rate_stages": [1e-5]},
            "go with optimizer.schedule 'plateau'",
        ),
    ],
)
def test_bad_values_are_refused(section, values, message):
    with pytest.raises(InputError, match=message):
        resolve("quick", [("test", {section: values})])


def test_later_layers_win_and_round_trip(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('preset = "standard"\n[training]\nmax_epochs = 3\n')
    preset, values = read_run_file(path)
    environment = settings.from_environment({"PRED_STD_FLOOR": "1e-5", "GRAD_MONITOR_EVERY": "7"})
    layers = [("environment", environment), (str(path), values)]
    config = resolve(preset or "", [*layers, ("explicit", {"training": {"max_epochs": 2}})])
    assert config.training.max_epochs == 2
    assert config.guard.std_floor == 1e-5
    assert config.monitor.every == 7
    assert from_dict(to_dict(config)) == config
    assert resolve("standard") == RunConfig()


def test_environment_and_run_file_errors(tmp_path):
    with pytest.raises(InputError, match="GRAD_MONITOR_EVERY is 'often'"):
        settings.from_environment({"GRAD_MONITOR_EVERY": "often"})
    with pytest.raises(InputError, match="not found"):
        read_run_file(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[training")
    with pytest.raises(InputError, match="not a readable toml"):
        read_run_file(broken)
