"""``vllm-local serve``: what it refuses to begin with, what it shows of itself, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import pytest

from shared_engine.cli.exit_codes import FAILED, INTERRUPTED, USAGE
from shared_engine.cli.main import main
from shared_engine.errors import SettingsError
from shared_engine.gateway.config import GatewayConfig, config_of, read_config
from shared_engine.gateway.listening import Listening, listening_socket
from shared_engine.gateway.watched_file import WatchedFile
from tests.support.command import COMMAND
from tests.support.gateways import LEAVE_S, gateway
from tests.support.paths import REPOSITORY
from tests.support.remote_server import RemoteServer, running_server
from tests.support.waiting import wait_until

CHAT = "/v1/chat/completions"
KEY = "a-key-that-nobody-sees"


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "models.yaml"
    path.write_text("models: {a: {model: org/a}}")
    return str(path)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(["serve", *words])
    return code, capsys.readouterr().err


@pytest.mark.slow
def test_what_can_not_be_served_is_told_before_anything_listens(
    file: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, text = said(capsys, "--config", file, "--port", port)
        assert (code, f"127.0.0.1:{port} can't be used" in text) == (USAGE, True)
    for words, told in (
        (["--config", file, "--host", "0.0.0.0"], "name api_keys in the config file, or say --allow-unauthenticated"),
        (["--config", str(tmp_path / "none.yaml")], "none.yaml can't be read: No such file"),
        (["--config", file, "./nothing"], "MODEL ./nothing: model = './nothing': no such folder"),
        (["--config", file, "--tls-cert", file], "not a certificate and its key"),
        (["--config", file, "--tls-cert", "none.pem"], "none.pem: not a certificate"),
        (["--config", file, "--host", "no.such.host.invalid", "--allow-unauthenticated"], "can't be used"),
    ):
        assert said(capsys, *words)[0] in (USAGE, FAILED)
        assert told in said(capsys, *words)[1], words


def test_a_socket_that_it_is_started_with_is_held_to_the_same() -> None:
    with socket.create_server(("0.0.0.0", 0)) as sock:
        given = Listening(passed=(listening_socket(sock.detach()),))
        with given.passed[0], pytest.raises(SettingsError, match=r"^0\.0\.0\.0 is reached from other machines"):
            given.check(config_of(["org/a"]))
    with socket.socket() as sock, pytest.raises(SettingsError, match="does not listen: give it a ListenStream="):
        listening_socket(sock.detach())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "there is nothing to serve"),
        (["a", "--tls-key", "x"], "--tls-key goes with --tls-cert"),
        (["a", "--watch"], "--watch goes with --config FILE"),
        *(
            (["a", "--port", port], f"argument --port: must be a port, 0 to 65535, got '{port}'")
            for port in ("-1", "65536", "99999", "80a", "8000.0", "")
        ),
    ],
)
def test_wrong_usage_is_told(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["serve", *words])
    assert (left.value.code, told in capsys.readouterr().err) == (USAGE, True)


@pytest.mark.slow
def test_a_key_is_in_no_log_command_line_or_answer(tmp_path: Path, server: RemoteServer) -> None:
    content = {
        "models": {"a": {"base_url": server.url, "max_retries": 0}},
        "api_keys": [{"name": "me", "key": "${env.GATE_KEY}"}],
    }
    server.fails(500, message=f"what came was {KEY}")
    with gateway(content, tmp_path, GATE_KEY=KEY, VLLM_LOCAL_LOG_LEVEL="DEBUG") as gate:
        with gate.client(headers={"Authorization": f"Bearer {KEY}"}) as client:
            answers = [client.get("/v1/models"), client.get("/nothing"), client.get("/metrics")]
        with gate.client(headers={"Authorization": f"Bearer {KEY}x"}) as client:
            answers.append(client.post(CHAT, json={"model": "a"}))
        gate.reload()
        command = Path(f"/proc/{gate.process.pid}/cmdline").read_bytes()
        assert [each.status_code for each in answers] == [200, 404, 200, 401]
    for text in (gate.told(), command.decode(), *(each.text for each in answers)):
        assert KEY not in text


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_it_at_once(tmp_path: Path, server: RemoteServer, number: signal.Signals) -> None:
    server.streams("a", "b", then="hang")
    body: dict[str, Any] = {"model": "a", "messages": [], "stream": True}
    with gateway({"models": {"a": {"base_url": server.url}}}, tmp_path) as gate, gate.client() as client:
        with client.stream("POST", CHAT, json=body) as answer:
            lines = answer.iter_lines()  # it hangs up when nobody holds it
            next(lines)
            gate.process.send_signal(number)
            with pytest.raises(subprocess.TimeoutExpired):
                gate.process.wait(0.5)
            assert gate.end(number) == 0
            assert error_at_the_end(lines) == "shutting_down"
        assert server.aborted.wait(10)
        assert "Traceback" not in gate.told()


def error_at_the_end(lines: Iterator[str]) -> Any:
    """Of a stream, its code."""
    return json.loads([line for line in lines if line][-1].removeprefix("data: "))["error"]["code"]


@pytest.mark.slow
def test_the_first_signal_after_shutdown_leaves_requests_their_time(tmp_path: Path, server: RemoteServer) -> None:
    server.streams("a", "b", then="hang")
    body: dict[str, Any] = {"model": "a", "messages": [], "stream": True}
    with gateway({"models": {"a": {"base_url": server.url}}}, tmp_path) as gate, gate.client() as client:
        with client.stream("POST", CHAT, json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert client.post("/shutdown").status_code == 202
            wait_until(lambda: "leaving" in gate.told(), LEAVE_S, "it to begin to leave")
            gate.process.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                gate.process.wait(0.5)
            assert gate.end() == 0
            assert error_at_the_end(lines) == "shutting_down"
        assert "Traceback" not in gate.told()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_it_heeds_signals_once_it_says_what_it_serves(
    tmp_path: Path, server: RemoteServer, number: signal.Signals
) -> None:
    with gateway({"models": {"a": {"base_url": server.url}}}, tmp_path) as gate:
        gate.process.send_signal(number)
        if number is signal.SIGHUP:
            wait_until(lambda: "was read again" in gate.told(), LEAVE_S, "it to read its configuration again")
            assert gate.end() == 0
        else:
            assert gate.process.wait(LEAVE_S) == 0
        assert "Traceback" not in gate.told()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_that_come_until_its_end_do_not_change_it(
    tmp_path: Path, server: RemoteServer, number: signal.Signals
) -> None:
    with gateway({"models": {"a": {"base_url": server.url}}}, tmp_path) as gate:
        until = time.monotonic() + LEAVE_S
        while gate.process.poll() is None and time.monotonic() < until:
            gate.process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                gate.process.wait(0.01)
        assert gate.process.poll() == 0
        assert "Traceback" not in gate.told()


def can_be_written(pipe: Path, opened: list[int]) -> bool:
    """Open it, if somebody reads it."""
    with suppress(OSError):
        opened.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    return bool(opened)


@contextmanager
def reading(file: Path) -> Iterator[tuple[subprocess.Popen[str], BinaryIO]]:
    """A gateway in the middle of reading its configuration, and where to write that."""
    os.mkfifo(file, 0o600)
    words = [*COMMAND, "serve", "--config", str(file), "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        try:
            opened: list[int] = []
            wait_until(lambda: can_be_written(file, opened), LEAVE_S, "it to open its configuration")
            with os.fdopen(opened[0], "wb") as written:
                yield process, written
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "told"),
    [
        (signal.SIGTERM, 0, ""),
        (signal.SIGINT, INTERRUPTED, "vllm-local: interrupted; engines stay, as their settings say\n"),
    ],
    ids=["SIGTERM", "SIGINT"],
)
def test_a_signal_while_it_reads_its_configuration_ends_it(
    tmp_path: Path, number: signal.Signals, code: int, told: str
) -> None:
    with reading(tmp_path / "models.yaml") as (process, _):
        for _ in range(10):  # Python misses one between its last look and the read that waits
            process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(2)
                break
        assert process.communicate(timeout=LEAVE_S) == ("", told)
        assert process.returncode == code


@pytest.mark.slow
def test_sighup_while_it_reads_its_configuration_has_it_read_again(tmp_path: Path, server: RemoteServer) -> None:
    file = tmp_path / "models.yaml"
    entry = {"base_url": server.url}
    with reading(file) as (process, written):
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGUSR2)
        written.write(json.dumps({"models": {"a": entry}}).encode())
        written.close()
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "it has ended"
        file.write_text(json.dumps({"models": {"a": {**entry, "aliases": ["new"]}}}))
        url = line.split("/v1 ")[0]
        wait_until(
            lambda: httpx.get(f"{url}/v1/models/new", trust_env=False).status_code == 200, LEAVE_S, "the new name"
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(LEAVE_S) == 0


def test_a_change_while_it_starts_is_seen(
    file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: str, _: Any) -> GatewayConfig:
        config = read_config(path)
        Path(path).write_text("models: {b: {model: org/b}}")
        return config

    async def serve(_: Any, __: Any, ___: Any, ____: Any, watched: WatchedFile, *_____: Any) -> None:
        raise SettingsError(f"{watched.has_changed()}, {watched.has_changed()}")

    monkeypatch.setattr("shared_engine.gateway.config.read_config", read)
    monkeypatch.setattr("shared_engine.gateway.server.serve", serve)
    monkeypatch.setattr("shared_engine.cli.commands.serve.setup", lambda: None)  # of all tests' logging
    assert said(capsys, "--config", file, "--watch", "--port", "0") == (USAGE, "vllm-local: True, False\n")


@pytest.mark.slow
def test_a_drain_that_takes_too_long_is_ended(tmp_path: Path, server: RemoteServer) -> None:
    server.streams("a", "b", then="hang")
    body: dict[str, Any] = {"model": "a", "messages": [], "stream": True}
    content = {"models": {"a": {"base_url": server.url}}}
    with ExitStack() as stack:
        gate = stack.enter_context(gateway(content, tmp_path, "--drain", "1"))
        answer = stack.enter_context(stack.enter_context(gate.client()).stream("POST", CHAT, json=body))
        lines = answer.iter_lines()
        next(lines)
        began = time.monotonic()
        assert gate.end() == 0
        assert time.monotonic() - began >= 1
        assert error_at_the_end(lines) == "shutting_down"
    assert "Traceback" not in gate.told()


@pytest.mark.slow
def test_open_to_all_where_that_is_said(tmp_path: Path, server: RemoteServer) -> None:
    content = {"models": {"a": {"base_url": server.url}}}
    with gateway(content, tmp_path, "--host", "0.0.0.0", "--allow-unauthenticated") as gate:
        port = gate.url.rpartition(":")[2]
        answer = httpx.get(f"http://127.0.0.1:{port}/v1/models", headers={"Host": "gate.lan"}, trust_env=False)
        assert [each["id"] for each in json.loads(answer.text)["data"]] == ["a"]
