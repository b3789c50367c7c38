"""The documented environment variables: what the README says, and what they set."""

import re
from pathlib import Path

import pytest

from atft_model.config import resolve
from atft_model.errors import InputError
from atft_model.settings import TUNABLES, from_environment, readme_table

ROOT = Path(__file__).parents[3]


def test_the_readme_shows_every_tunable_as_it_is():
    text = (ROOT / "README.md").read_text()
    found = re.search(r"<!-- tunables:[^\n]*-->\n(.*?)\n<!-- /tunables -->", text, re.DOTALL)
    assert found is not None
    assert found[1] == readme_table()
    assert all(f"| {tunable.name} | " in found[1] for tunable in TUNABLES)


@pytest.mark.parametrize("tunable", TUNABLES, ids=lambda tunable: tunable.name)
def test_a_variable_sets_its_setting_and_nothing_else(tunable):
    plain = resolve("quick")
    before = getattr(getattr(plain, tunable.section), tunable.key)
    text = {"flag": "0" if before else "1", "int": "7", "float": "0.25"}[tunable.kind]
    changed = resolve("quick", [("environment", from_environment({tunable.name: text}))])
    after = getattr(getattr(changed, tunable.section), tunable.key)
    assert after != before
    assert after == {"flag": not before, "int": 7, "float": 0.25}[tunable.kind]
    explicit = resolve(
        "quick",
        [("environment", from_environment({tunable.name: text})),
         ("run config", {tunable.section: {tunable.key: before}})],
    )  # fmt: skip
    assert explicit == plain


def test_a_value_that_is_none_is_refused():
    with pytest.raises(InputError, match="SKIP_PRETRAIN_NAN_SCAN is 'maybe'; expected 1 or 0"):
        from_environment({"SKIP_PRETRAIN_NAN_SCAN": "maybe"})
