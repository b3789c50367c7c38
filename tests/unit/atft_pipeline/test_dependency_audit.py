"""The audit of dependencies: what it finds offline, and that no answer is no pass."""

import json
from pathlib import Path

import pytest

from atft_pipeline.dependency_audit import (
    Installed,
    ask_advisories,
    installed_faults,
    main,
    pin_faults,
    pins_of,
    read_installed,
)

CONSTRAINTS = Path(__file__).parents[3] / "constraints.txt"
PINS = {"torch": "2.13.0", "typing-extensions": "4.15.0"}


def test_the_project_s_pins_are_plain_versions():
    lines = CONSTRAINTS.read_text().splitlines()
    assert pin_faults(lines) == []
    assert len(pins_of(lines)) > 100


@pytest.mark.parametrize(
    "line",
    ["torch @ https://example.org/torch.whl", "torch>=2", "torch", "-e .", "torch==2.*",
     "https://example.org/torch.whl", "--extra-index-url https://example.org", "Polars==1.0"],
)  # fmt: skip
def test_a_line_that_is_no_plain_pin_is_at_fault(line):
    assert len(pin_faults(["polars==2.1.0", "", "# a comment", line])) == 1


def test_what_is_installed_as_pinned_is_fine():
    installed = [Installed("torch", "2.13.0+cpu"), Installed("typing_extensions", "4.15.0"),
                 Installed("pip", "23.2"), Installed("atft", "0.1.0", "file:///work")]  # fmt: skip
    assert installed_faults(installed, PINS) == []


@pytest.mark.parametrize(
    ("package", "fault"),
    [
        (Installed("torch", "2.12.0+cpu"), "torch is 2.12.0+cpu, pinned is 2.13.0"),
        (Installed("leftpad", "1.0"), "leftpad 1.0 is installed and not pinned"),
        (Installed("torch", "2.13.0", "https://example.org/t.whl"),
         "torch was installed from https://example.org/t.whl, expected from an index"),
    ],
)  # fmt: skip
def test_a_package_that_is_not_as_pinned_is_named(package, fault):
    assert installed_faults([package], PINS) == [fault]


def test_the_environment_is_read():
    found = {package.name: package for package in read_installed()}
    assert found["pytest"].version
    assert found["pytest"].address is None


def stand_in(folder: Path, answer: str, error: str = "", code: int = 1) -> Path:
    """A program that answers as pip-audit does: its own advisories need a network."""
    path = folder / "pip-audit"
    path.write_text(f"#!/bin/sh\necho {error!r} >&2\nprintf '%s' {answer!r}\nexit {code}\n")
    path.chmod(0o755)
    return path


VULNERABLE = json.dumps({"dependencies": [
    {"name": "torch", "version": "2.13.0", "vulns": [{"id": "CVE-1", "fix_versions": ["2.14"]}]},
    {"name": "polars", "version": "2.1.0", "vulns": []},
]})  # fmt: skip


@pytest.fixture
def pins(tmp_path, monkeypatch) -> Path:
    """Pins of exactly what is installed here."""
    path = tmp_path / "constraints.txt"
    own = {package.name: package.version.partition("+")[0] for package in read_installed()}
    path.write_text("".join(f"{name}=={version}\n" for name, version in own.items()))
    return path


def test_a_known_vulnerability_is_a_fault(tmp_path, pins, capsys):
    tool = stand_in(tmp_path, VULNERABLE)
    assert main(["--constraints", str(pins), "--pip-audit", str(tool)]) == 1
    said = capsys.readouterr().out
    assert "FAULT torch 2.13.0: CVE-1, mended in 2.14" in said
    assert "2 pins looked up, 1 vulnerabilities known" in said


def test_advisories_that_cannot_be_reached_are_no_pass(tmp_path, pins):
    tool = stand_in(tmp_path, "", error="ERROR: Connection refused")
    answer = ask_advisories(tool, pins)
    assert (answer.vulnerable, answer.looked_up) == ((), 0)
    assert answer.failure == "ERROR: Connection refused"
    assert "is not installed" in ask_advisories(tmp_path / "none", pins).failure
    skipped = json.dumps({"dependencies": [{"name": "atft", "skip_reason": "not found"}]})
    assert ask_advisories(stand_in(tmp_path, skipped, code=0), pins).failure == (
        "pip-audit skipped atft"
    )


def test_what_was_skipped_is_named_and_counted(tmp_path, pins, capsys):
    packages = [{"name": f"p{n}", "skip_reason": "not found"} for n in range(7)]
    packages.append({"name": "torch", "version": "2.13.0", "vulns": []})
    tool = stand_in(tmp_path, json.dumps({"dependencies": packages}), code=0)
    answer = ask_advisories(tool, pins)
    assert answer.failure == "pip-audit skipped p0, p1, p2, p3, p4 and 2 more"
    main(["--constraints", str(pins), "--pip-audit", str(tool)])
    count = len(pins_of(pins.read_text().split()))
    assert f"{count - 1} of {count} pins" in capsys.readouterr().out


def test_nothing_is_installed_or_resolved_to_look_pins_up(tmp_path, pins):
    tool = tmp_path / "pip-audit"
    tool.write_text('#!/bin/sh\necho "$@" >&2\nexit 1\n')
    tool.chmod(0o755)
    said = ask_advisories(tool, pins).failure.split()
    assert {"--no-deps", "--disable-pip", str(pins)} <= set(said)


def test_an_address_that_pip_noted_is_read(monkeypatch):
    from atft_pipeline import dependency_audit

    class Noted:
        name, version = "torch", "2.13.0"

        def read_text(self, name: str) -> str:
            assert name == "direct_url.json"
            return '{"url": "https://example.org/t.whl"}'

    monkeypatch.setattr(dependency_audit, "distributions", lambda: [Noted()])
    (found,) = read_installed()
    assert found.address == "https://example.org/t.whl"


def test_the_exit_code_tells_a_fault_from_silence(tmp_path, pins, monkeypatch, capsys):
    from atft_pipeline import dependency_audit

    clean = [
        Installed(name, version) for name, version in pins_of(pins.read_text().split()).items()
    ]
    monkeypatch.setattr(dependency_audit, "read_installed", lambda: clean)
    silent = stand_in(tmp_path, "", error="ERROR: Connection refused")
    assert main(["--constraints", str(pins), "--pip-audit", str(silent)]) == 3
    said = capsys.readouterr().out
    assert f"NOT LOOKED UP for known vulnerabilities: {len(clean)} of {len(clean)} pins" in said
    nothing = json.dumps({"dependencies": [{"name": p.name, "version": p.version, "vulns": []}
                                           for p in clean]})  # fmt: skip
    answers = stand_in(tmp_path, nothing, code=0)
    assert main(["--constraints", str(pins), "--pip-audit", str(answers)]) == 0
    foreign = [*clean, Installed("rightpad", "1.0")]
    monkeypatch.setattr(dependency_audit, "read_installed", lambda: foreign)
    assert main(["--constraints", str(pins), "--pip-audit", str(answers)]) == 1
    assert "FAULT rightpad 1.0 is installed and not pinned" in capsys.readouterr().out
    monkeypatch.setattr(dependency_audit, "read_installed", lambda: clean)
    pins.write_text(pins.read_text() + "leftpad @ https://example.org/l.whl\n")
    assert main(["--constraints", str(pins), "--pip-audit", str(silent)]) == 1


def test_offline_asks_nobody_and_is_no_pass(tmp_path, pins, monkeypatch, capsys):
    from atft_pipeline import dependency_audit

    monkeypatch.setattr(dependency_audit, "installed_faults", lambda *_: [])
    vulnerable = stand_in(tmp_path, VULNERABLE)
    assert main(["--constraints", str(pins), "--pip-audit", str(vulnerable), "--offline"]) == 3
    assert "NOT LOOKED UP for known vulnerabilities" in capsys.readouterr().out


def test_advisories_that_never_answer_are_not_waited_for(tmp_path, pins, monkeypatch):
    from atft_pipeline import dependency_audit

    monkeypatch.setattr(dependency_audit, "PATIENCE", 0.2)
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 30\n")
    slow.chmod(0o755)
    assert ask_advisories(slow, pins).failure == "no answer within 0.2 s"
