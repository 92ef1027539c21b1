"""What a service manager gives a process, and hears of it."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

import pytest

from shared_engine.machine.service_manager import ServiceManager, passed_files, with_files

OWN = str(os.getpid())


@pytest.mark.parametrize(
    "environment",
    [{}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {"LISTEN_PID": OWN}, {"LISTEN_PID": OWN, "LISTEN_FDS": "-1"}],
    ids=["no service", "of another process", "no number", "a wrong number"],
)
def test_files_are_passed_to_one_process(environment: dict[str, str]) -> None:
    assert passed_files(environment) == []


def test_passed_files_have_names_and_go_to_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, bool]] = []
    monkeypatch.setattr(os, "set_inheritable", lambda fd, inheritable: made.append((fd, inheritable)))
    environment = {"LISTEN_PID": OWN, **with_files({"LISTEN_PID": "1", "WATCHDOG_PID": "1", "A": "b"}, ["", "ready"])}
    assert passed_files(environment) == [("", 3), ("ready", 4)]
    assert made == [(3, False), (4, False)]
    assert "WATCHDOG_PID" not in environment  # it is watched by another number
    assert environment["A"] == "b"
    del environment["LISTEN_FDNAMES"]
    assert passed_files(environment) == [("", 3), ("", 4)]


@pytest.mark.parametrize("is_abstract", [False, True])
def test_what_is_told_comes_in_one_message(tmp_path: Path, is_abstract: bool) -> None:
    address = f"@vllm-local-test-{OWN}" if is_abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + address[1:] if is_abstract else address)
        ServiceManager({"NOTIFY_SOCKET": address}).tell("STOPPING=1", "STATUS=bye")
        assert manager.recv(100) == b"STOPPING=1\nSTATUS=bye"


def test_a_manager_that_is_gone_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ServiceManager({}).tell("READY=1")
    with caplog.at_level(logging.WARNING):
        ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "none")}).tell("READY=1")
    assert "can't be told READY=1: " in caplog.text


@pytest.mark.parametrize(
    ("environment", "interval_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 30),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": OWN}, 30),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
    ],
)
def test_how_often_a_watched_service_says_that_it_is_alive(
    environment: dict[str, str], interval_s: float | None
) -> None:
    assert ServiceManager(environment).alive_interval_s == interval_s
