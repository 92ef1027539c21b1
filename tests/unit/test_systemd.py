"""When an engine gets a cgroup of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shared_engine.cli import machine_checks
from shared_engine.cli.finding import Outcome
from shared_engine.machine import systemd
from shared_engine.machine.systemd import new_scope, own_service


@pytest.mark.parametrize(
    ("cgroups", "service"),
    [
        ("0::/system.slice/app.service", "app.service"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/chat.service", "chat.service"),
        ("0::/system.slice/app.service/worker", "app.service"),
        ("9:name=systemd:/system.slice/app.service\n0::/", "app.service"),
        ("0::/user.slice/user-1000.slice/session-3.scope", None),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-terminal.scope", None),
        ("0::/user.slice/user-1000.slice/user@1000.service/init.scope", None),
        ("0::/user.slice/user-1000.slice/user@1000.service", None),
        ("0::/system.slice/docker-0123.scope", None),
        ("0::/", None),
        ("", None),
    ],
)
def test_the_service_that_a_process_belongs_to(cgroups: str, service: str | None) -> None:
    assert own_service(cgroups) == service


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Of a service, with systemd-run and a manager for the user: its environment."""
    (tmp_path / "booted").mkdir()
    (tmp_path / "cgroup").write_text("0::/system.slice/app.service")
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "systemd-run"
    tool.write_text("#!/bin/sh\nexit 0\n")
    tool.chmod(0o755)
    manager = tmp_path / "user" / "systemd" / "private"
    manager.parent.mkdir(parents=True)
    manager.touch()
    monkeypatch.setattr(systemd, "BOOTED", tmp_path / "booted")
    monkeypatch.setattr(systemd, "CGROUPS", tmp_path / "cgroup")
    return {"PATH": str(tmp_path / "bin"), "XDG_RUNTIME_DIR": str(tmp_path / "user")}


def test_a_service_gets_a_scope_of_the_user_s_manager(machine: dict[str, str]) -> None:
    scope = new_scope("0123abcd", machine)
    assert scope is not None
    tool, user, *options = scope.prefix
    assert (Path(tool).name, user, options[-1]) == ("systemd-run", "--user", "--")
    assert "--scope" in options
    assert any(option.startswith("--unit=vllm-local-0123abcd-") for option in options)
    assert scope.variables == {"XDG_RUNTIME_DIR": machine["XDG_RUNTIME_DIR"]}
    assert new_scope("0123abcd", machine) != scope, "no two have one name"


def test_without_the_tool_there_is_none(machine: dict[str, str]) -> None:
    assert new_scope("0123abcd", {**machine, "PATH": "/nonexistent"}) is None


@pytest.mark.skipif(os.getuid() == 0 and Path("/run/systemd/private").exists(), reason="root has the system's manager")
def test_doctor_says_what_becomes_of_engines_that_a_service_starts(
    machine: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in machine.items():
        monkeypatch.setenv(name, value)
    found = machine_checks.check_service()
    assert found is not None
    assert found.outcome is Outcome.OK
    assert "app.service" in found.detail
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nonexistent")
    found = machine_checks.check_service()
    assert found is not None
    assert found.outcome is Outcome.WARN
    assert "enable-linger" in found.remedy
    systemd.CGROUPS.write_text("0::/user.slice/user-1000.slice/session-3.scope")
    assert machine_checks.check_service() is None
