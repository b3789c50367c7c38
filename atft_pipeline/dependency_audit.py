"""``python -m atft_pipeline.dependency_audit``: is what runs what was pinned, and is it safe?

Two parts. The first needs no network and always runs: every pin is a plain version, and everything
installed is of its pinned version and came from an index, not from an address. The second asks
pip-audit for known vulnerabilities of the pinned versions; where its advisories cannot be reached
that is said, with what was not looked up, and is no pass.

Exit code 0: both hold. 1: a pin, an installed package or a known vulnerability is at fault.
3: nothing at fault, but nothing was looked up either.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

OWN = "atft"
TOOLS = ("pip", "setuptools", "wheel")
"""Come with the virtual environment; pip itself is not what runs."""
FAULT, NOT_LOOKED_UP = 1, 3
SHOWN = 5
PATIENCE = 300
"""Seconds."""
_PIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!_]+")


@dataclass(frozen=True)
class Installed:
    """A package of this environment.

    Attributes:
        address: Where it was installed from; None for an index.
    """

    name: str
    version: str
    address: str | None = None


@dataclass(frozen=True)
class Advisories:
    """What pip-audit answered.

    Attributes:
        vulnerable: One line per known vulnerability.
        looked_up: Packages that were.
        failure: Why nothing, or not everything, was looked up; empty where all was.
    """

    vulnerable: tuple[str, ...] = ()
    looked_up: int = 0
    failure: str = ""


def plain_name(name: str) -> str:
    """A package's name as indices compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pin_faults(lines: Iterable[str]) -> list[str]:
    """Lines of a constraints file that are no ``name==version``: addresses, ranges, repeats."""
    faults, seen = [], set()
    for number, text in enumerate(lines, start=1):
        line = text.partition("#")[0].strip()
        if not line:
            continue
        name = plain_name(line.partition("==")[0])
        if not _PIN.fullmatch(line):
            faults.append(f"line {number}: {line!r}, expected name==version")
        elif name in seen:
            faults.append(f"line {number}: {name} is pinned twice")
        seen.add(name)
    return faults


def pins_of(lines: Iterable[str]) -> dict[str, str]:
    """Pinned version by plain name."""
    parts = (line.partition("#")[0].strip().partition("==") for line in lines)
    return {plain_name(name): version for name, _, version in parts if version}


def installed_faults(installed: Iterable[Installed], pins: Mapping[str, str]) -> list[str]:
    """Installed packages that are not pinned, of another version, or from an address.

    A local label is no other version: torch 2.13.0+cpu is the pinned 2.13.0.
    """
    faults = []
    for package in installed:
        name = plain_name(package.name)
        if name in TOOLS or name == OWN:
            continue
        if name not in pins:
            faults.append(f"{name} {package.version} is installed and not pinned")
        elif package.version.partition("+")[0] != pins[name]:
            faults.append(f"{name} is {package.version}, pinned is {pins[name]}")
        if package.address:
            faults.append(f"{name} was installed from {package.address}, expected from an index")
    return faults


def read_installed() -> list[Installed]:
    """The packages of the environment that this runs in."""
    found = []
    for one in distributions():
        record = one.read_text("direct_url.json")  # pip's note of an address (PEP 610)
        address = json.loads(record)["url"] if record else None
        found.append(Installed(one.name, one.version, address))
    return sorted(found, key=lambda package: plain_name(package.name))


def ask_advisories(tool: Path, constraints: Path) -> Advisories:
    """Runs pip-audit on the pins as they are; it installs and resolves nothing."""
    if not tool.exists():
        return Advisories(failure=f"{tool} is not installed; make audit installs it")
    command = [str(tool), "--requirement", str(constraints), "--no-deps", "--disable-pip",
               "--format", "json", "--progress-spinner", "off", "--timeout", "15"]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return Advisories(failure=f"no answer within {PATIENCE} s")
    # It exits 1 both for a vulnerability and for an error; only with the first there is an answer.
    if not done.stdout.strip():
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Advisories(failure=last)
    return answer_of(json.loads(done.stdout)["dependencies"])


def answer_of(packages: Iterable[Mapping[str, object]]) -> Advisories:
    """pip-audit's JSON in lines; a package that it skipped was not looked up."""
    vulnerable, skipped, looked_up = [], [], 0
    for package in packages:
        if "skip_reason" in package:
            skipped.append(str(package["name"]))
            continue
        looked_up += 1
        found = package["vulns"]
        assert isinstance(found, list)
        vulnerable += [
            f"{package['name']} {package['version']}: {one['id']}, mended in "
            f"{', '.join(one['fix_versions']) or 'no version yet'}"
            for one in found
        ]
    more = f" and {len(skipped) - SHOWN} more" if len(skipped) > SHOWN else ""
    # Behind an index that knows no advisories it skips all, and calls that "none found".
    failure = f"pip-audit skipped {', '.join(skipped[:SHOWN])}{more}" if skipped else ""
    return Advisories(tuple(vulnerable), looked_up, failure)


def main(arguments: list[str] | None = None) -> int:
    """Prints what was found; the exit codes are those of the module."""
    parser = argparse.ArgumentParser(prog="python -m atft_pipeline.dependency_audit")
    parser.add_argument("--constraints", type=Path, default=Path("constraints.txt"))
    parser.add_argument("--pip-audit", type=Path, default=Path(".venv-audit/bin/pip-audit"))
    parser.add_argument("--offline", action="store_true", help="look nothing up: the pins alone")
    options = parser.parse_args(arguments)
    lines = options.constraints.read_text().splitlines()
    pins, installed = pins_of(lines), read_installed()
    faults = [*pin_faults(lines), *installed_faults(installed, pins)]
    if not faults:
        print(f"{len(pins)} pins, {len(installed)} installed packages as pinned, from an index")
    answer = (
        Advisories(failure="--offline")
        if options.offline
        else ask_advisories(options.pip_audit, options.constraints)
    )
    faults += answer.vulnerable
    print("\n".join(f"FAULT {fault}" for fault in faults), end="\n" if faults else "")
    if answer.looked_up:
        print(f"{answer.looked_up} pins looked up, {len(answer.vulnerable)} vulnerabilities known")
    if answer.failure:
        print(f"NOT LOOKED UP for known vulnerabilities: {len(pins) - answer.looked_up} of "
              f"{len(pins)} pins: {answer.failure}")  # fmt: skip
    if faults:
        return FAULT
    return NOT_LOOKED_UP if answer.failure else 0


if __name__ == "__main__":
    sys.exit(main())
