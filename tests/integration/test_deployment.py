"""The files of deploy/ have the form that their programs read; what they start is tried by hand."""

import re
from pathlib import Path

import pytest
import yaml
from dagster._config import process_config
from dagster._core.instance.config import dagster_instance_config_schema

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", [DEPLOY / "dagster.yaml", ROOT / "dagster_home" / "dagster.yaml"])
def test_dagster_reads_the_instance_s_settings(path, monkeypatch):
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "postgresql+psycopg2://dagster@localhost/dagster")
    settings = read(path)
    found = process_config(dagster_instance_config_schema(), settings)
    assert found.success, found.errors
    wrong = process_config(dagster_instance_config_schema(), {**settings, "retentoin": {}})
    assert not wrong.success


def test_postgres_changes_the_storage_and_the_queue_alone():
    """Whatever else is set holds in both."""
    local, deployed = read(ROOT / "dagster_home" / "dagster.yaml"), read(DEPLOY / "dagster.yaml")
    del deployed["storage"]
    del deployed["concurrency"]["runs"]
    assert local == deployed


def test_passwords_come_from_the_environment_or_nothing_starts():
    services = read(DEPLOY / "compose.yaml")["services"]
    given = "${POSTGRES_PASSWORD:?"
    assert services["postgres"]["environment"]["POSTGRES_PASSWORD"].startswith(given)
    for name in ("code", "webserver", "daemon"):
        url = services[name]["environment"]["DAGSTER_POSTGRES_URL"]
        assert url.startswith(f"postgresql+psycopg2://dagster:{given}")
        assert services[name]["environment"]["JQUANTS_API_KEY"] == "${JQUANTS_API_KEY:-}"


def test_every_variable_of_the_project_reaches_the_containers():
    """But for the data dir, which the image sets: a setting that is dropped would go unnoticed."""
    source = (ROOT / "atft_pipeline" / "resources.py").read_text()
    known = set(re.findall(r"\b(?:ATFT_[A-Z_]+[A-Z]|JQUANTS_API_KEY)\b", source)) - {
        "ATFT_DATA_DIR"
    }
    assert len(known) > 15
    for name in ("code", "webserver", "daemon"):
        assert known <= set(read(DEPLOY / "compose.yaml")["services"][name]["environment"])


def test_the_image_holds_what_its_commands_need():
    lines = (DEPLOY / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (.+) \S+$", lines, flags=re.M)
    assert all((ROOT / path).exists() for line in copied for path in line.split())
    assert "libgomp1" in lines
    for path in ("deploy/dagster.yaml", "deploy/workspace.yaml", "atft_pipeline", "atft_model"):
        assert path in copied


def test_the_containers_start_what_the_workspace_expects_and_only_locally():
    services = read(DEPLOY / "compose.yaml")["services"]
    (server,) = (entry["grpc_server"] for entry in read(DEPLOY / "workspace.yaml")["load_from"])
    assert f"-p {server['port']} -m {server['location_name']}" in services["code"]["command"]
    assert server["host"] in services
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:3000:3000"]
    assert all("options" in service["logging"] for service in services.values())
