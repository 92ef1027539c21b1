"""The command line on runtime directories made by hand: what it prints, what it asks supervisors, its exit codes."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import shared_engine
from shared_engine.cli.exit_codes import READER_LEFT
from shared_engine.cli.main import COMMANDS, main, parser_of
from shared_engine.cli.status_table import status_table
from shared_engine.cli.table import PIPED_WIDTH, duration, size
from shared_engine.cli.terminal import DIM, has_colours, painted
from shared_engine.errors import EngineNameError, InvalidInputError, SettingsError
from shared_engine.observe.engine_info import EngineInfo
from shared_engine.observe.log_reader import printable
from shared_engine.observe.processes import ProcessNode
from shared_engine.runtime.directory import ROOT_VARIABLE
from shared_engine.runtime.lease import Lease
from shared_engine.runtime.messages import Evict, Shutdown
from shared_engine.runtime.progress import Progress, StartPhase
from shared_engine.runtime.record import EngineState, Failure, FailureKind
from shared_engine.runtime.spec import EngineSpec
from tests.support.hand_made import KEY, OTHER_KEY, HandMade, MakeEngine
from tests.support.paths import REPOSITORY
from tests.support.waiting import wait_until

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are as wide as in a pipe, whatever terminal the tests run in."""
    monkeypatch.setenv("COLUMNS", str(PIPED_WIDTH))


def start(
    *arguments: str, stdout: int = subprocess.PIPE, stderr: int = subprocess.PIPE, **environment: str
) -> subprocess.Popen[str]:
    """The command as a process of its own, unbuffered by nothing but itself."""
    return subprocess.Popen(
        [sys.executable, "-m", "shared_engine.cli", *arguments],
        stdout=stdout,
        stderr=stderr,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, **environment},
    )


# ---- usage


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["status", "--watch", "0"],
        ["status", "--watch", "soon"],
        ["logs", "-n", "-1"],
        ["stop", "--timeout", "-1"],
        ["stop", "--timeout", "inf"],
        ["evict", "--force"],
        ["stop", "--all", "0123"],
        ["install", "--cpu", "--cuda"],
    ],
)
def test_wrong_usage_is_exit_code_2(root: Path, capsys: Capture, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: vllm-local" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["a", "b", "--timeout", "3", "--all"],
        ["--timeout", "3", "a", "--all", "b"],
        ["a", "--all", "--timeout=3", "b"],
        ["--all", "--timeout", "3", "--", "a", "b"],
    ],
)
def test_words_and_options_stand_in_any_order(words: list[str]) -> None:
    arguments = parser_of(["stop"]).parse_args(["stop", *words])
    assert (arguments.engines, arguments.timeout, arguments.all) == (["a", "b"], 3.0, True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--tiemout=3"], "unrecognized arguments: --tiemout=3; did you mean --timeout?"),
        (["--what"], "unrecognized arguments: --what\n"),
    ],
)
def test_an_unknown_option_is_told_with_the_command_and_the_nearest_one(
    capsys: Capture, words: list[str], told: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["stop", "a", *words])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("usage: vllm-local stop ")
    assert told in error


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("rnu", "unknown command 'rnu'; did you mean 'run'?; `vllm-local --help` tells what each does"),
        ("dance", "unknown command 'dance'; known: batch, bench, chat, "),
    ],
)
def test_an_unknown_command_is_told_with_the_nearest_one(capsys: Capture, word: str, told: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--debug", word, "--all"])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_without_a_command_it_tells_which_there_are(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert all(command.text.split()[0] in err for command in COMMANDS.values())


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("run", "MODEL"),
        ("embed", "MODEL"),
        ("rerank", "MODEL, QUERY"),
        ("tokens", "count|show, MODEL"),
        ("completion", "install|show|remove"),
        ("batch", "IN, OUT"),
    ],
)
def test_only_words_that_must_be_there_are_missing(capsys: Capture, command: str, missing: str) -> None:
    with pytest.raises(SystemExit):
        main([command])
    assert capsys.readouterr().err.endswith(f"error: the following arguments are required: {missing}\n")


@pytest.mark.parametrize("arguments", [[], *([name] for name in COMMANDS)])
def test_help_names_the_exit_codes(capsys: Capture, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "exit codes: 0 done, 1 failed, 2 wrong usage, 3 busy" in shown
    assert f"examples:\n  vllm-local {' '.join(arguments)}" in shown


def test_of_many_options_a_usage_names_the_words_only(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["tokens"])
    assert capsys.readouterr().err.startswith("usage: vllm-local tokens [OPTION ...] count|show MODEL [TEXT ...]\n")


def test_the_version_is_told(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"vllm-local {shared_engine.__version__}\n"


@pytest.mark.slow
def test_another_name_of_a_command_is_as_good(hand_made: MakeEngine, capsys: Capture) -> None:
    made = hand_made()
    assert main(["unload", KEY[:4]]) == 0
    assert made.asked() == [Evict()]


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (SettingsError("max_model_len = -1: too small"), 2, "max_model_len = -1: too small"),
        (InvalidInputError("prompt: must be text"), 2, "prompt: must be text"),
        (EngineNameError("no engine is named 'x'"), 1, "no engine is named 'x'"),
        (FileNotFoundError(2, "No such file or directory", "in.txt"), 1, "in.txt: No such file or directory"),
        (KeyError("key"), 1, "a fault of its own: KeyError: 'key' (with --debug it shows where)"),
    ],
)
def test_an_error_is_a_line_and_with_debug_a_traceback_too(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, error: Exception, code: int, told: str
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("shared_engine.cli.commands.status.find_engines", fail)
    assert main(["status"]) == code
    assert capsys.readouterr().err == f"vllm-local: {told}\n"
    assert main(["status", "--debug"]) == code
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback")
    assert shown.endswith(f"vllm-local: {told}\n")


def test_only_the_command_that_is_asked_for_is_imported() -> None:
    code = (
        "import sys; from shared_engine.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\nprint(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not {name for name in loaded if name.startswith("shared_engine.cli.commands")}
    assert not {"asyncio", "pydantic", "logging", "subprocess"} & loaded


INTERRUPTED_AT_AN_IMPORT = """
import os, signal, sys
class Interrupts:
    def find_spec(self, name, *_):
        if name == wanted:
            os.kill(os.getpid(), signal.SIGINT)
wanted = sys.argv.pop(1)
sys.meta_path.insert(0, Interrupts())
from shared_engine.cli.entry import run
run()
"""


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("shared_engine.cli.main", -signal.SIGINT),
        ("argparse", -signal.SIGINT),
        ("shared_engine.cli.commands.embed", -signal.SIGINT),
        ("pydantic", -signal.SIGINT),
        ("shared_engine.engine", -signal.SIGINT),
        ("aiohttp", 130),
    ],
)
@pytest.mark.slow
def test_ctrl_c_while_the_command_imports_makes_no_traceback(root: Path, module: str, code: int) -> None:
    words = ["embed", "-", "--base-url", "http://127.0.0.1:1", "text"]
    command = [sys.executable, "-c", INTERRUPTED_AT_AN_IMPORT, module, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.slow
def test_a_command_in_the_background_does_not_heed_ctrl_c(root: Path) -> None:
    command = f"trap '' INT; exec {sys.executable} -m shared_engine.cli status --watch 0.1"
    watch = subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert watch.stdout is not None
    try:
        watch.stdout.readline()
        watch.send_signal(signal.SIGINT)
        assert [watch.stdout.readline() for _ in range(4)]
        assert watch.poll() is None
    finally:
        watch.kill()
        watch.communicate()


@pytest.mark.slow
def test_what_an_encoding_lacks_is_replaced(hand_made: MakeEngine) -> None:
    hand_made()
    tree = start("status", "--tree", PYTHONIOENCODING="ascii")
    shown, errors = tree.communicate(timeout=10)
    assert (tree.returncode, errors) == (0, "")
    assert "?? " in shown


@pytest.mark.parametrize(
    ("environment", "is_coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({}, False)],
)
def test_colours_are_for_terminals_that_show_them(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], is_coloured: bool
) -> None:
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal, open(os.devnull, "w") as no_terminal:
        assert has_colours(terminal) is is_coloured
        assert painted("x", DIM, terminal) == ("\x1b[2mx\x1b[0m" if is_coloured else "x")
        assert painted("x", DIM, no_terminal) == painted("x", DIM, None) == "x"
    os.close(ours)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this kernel has no /dev/full")
def test_output_that_cannot_be_written_is_told() -> None:
    with open("/dev/full", "w") as full:
        command = start("status", stdout=full.fileno())
        _, errors = command.communicate(timeout=10)
    assert (command.returncode, errors) == (1, "vllm-local: the output: No space left on device\n")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this kernel has no /dev/full")
@pytest.mark.parametrize(("arguments", "code"), [(["logs", "--nope"], 2), (["logs", "nobody"], 1)])
def test_a_complaint_that_cannot_be_written_changes_no_exit_code(arguments: list[str], code: int) -> None:
    with open("/dev/full", "w") as full:
        command = start(*arguments, stderr=full.fileno())
        command.communicate(timeout=10)
    assert command.returncode == code


# ---- status


def test_status_of_nothing(root: Path, hand_made: MakeEngine, capsys: Capture) -> None:
    assert main(["status"]) == 0
    assert capsys.readouterr().out == f"no engine is alive in {root}\n"
    hand_made(supervisor=None)
    assert main(["status"]) == 0
    assert capsys.readouterr().out == f"no engine is alive in {root} (1 ended: --all shows them)\n"
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["status", "--all"]) == 0
    assert "tiny_chat  01234567  stopped" in capsys.readouterr().out


@pytest.mark.slow
def test_status_shows_a_line_for_each_living_or_failed_engine(hand_made: MakeEngine, capsys: Capture) -> None:
    hand_made(state_since=time.time() - 125, pinned=True)
    failure = Failure(FailureKind.START, "the engine did not start: " + 30 * "no memory " + "\nsecond line")
    hand_made(OTHER_KEY, supervisor=None, model="org/other-model", failure=failure)
    assert main(["status"]) == 0
    head, ready, failed, *error = capsys.readouterr().out.splitlines()
    assert head.split() == ["ENGINE", "KEY", "STATE", "FOR", "RAM", "LEASES", "IDLE", "STARTS"]
    name, pinned, key, state, for_how_long, ram, leases, idle, starts = ready.split()
    assert (name, pinned, key, state, for_how_long, leases, idle, starts) == (
        "tiny_chat",
        "(pinned)",
        KEY[:8],
        "ready",
        "2m",
        "0",
        "2m",
        "2",
    )
    assert ram.endswith("M")
    assert failed.split()[:3] == ["other-model", OTHER_KEY[:8], "stopped"]
    assert " ".join(" ".join(error).split()) == f"last error: the engine did not start: {30 * 'no memory '}".strip()
    assert all(len(line) <= 100 and line.startswith("  ") for line in error)


@pytest.mark.slow
def test_status_says_in_which_flags_engines_of_one_model_differ(hand_made: MakeEngine, capsys: Capture) -> None:
    flags = ("--model", "/models/tiny_chat", "--seed", "0")
    write_spec(hand_made(), *flags, "--max-model-len", "512", "--enforce-eager")
    write_spec(hand_made(OTHER_KEY), *flags, "--max-model-len", "1024")
    write_spec(hand_made("cccc000000000000", model="org/other"), "--model", "org/other")
    assert main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = {line.split()[1]: lines[at + 1].strip() for at, line in enumerate(lines[:-1]) if "  ready" in line}
    assert told[KEY[:8]] == "--enforce-eager --max-model-len 512"
    assert told[OTHER_KEY[:8]] == "no --enforce-eager --max-model-len 1024"
    assert sum(line.startswith("  ") for line in lines) == 2


def write_spec(made: HandMade, *argv: str) -> None:
    spec = EngineSpec(argv=argv, python="/opt/vllm/bin/python", vllm_version="0.32.0", model=made.record.model)
    made.directory.spec.write_text(spec.to_json())


def test_status_of_a_runtime_directory_that_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "file"))
    assert main(["status"]) == 2
    assert f"the runtime directory {tmp_path}/file is a file" in capsys.readouterr().err


@pytest.mark.slow
def test_status_tells_how_far_a_start_is(hand_made: MakeEngine, capsys: Capture) -> None:
    hand_made(state=EngineState.STARTING, progress=Progress(StartPhase.WEIGHTS, 3, 8))
    assert main(["status", "tiny_chat"]) == 0
    assert "starting: loading weights 3/8" in capsys.readouterr().out


def test_the_table_stays_within_100_columns(capsys: Capture) -> None:
    processes = ProcessNode(1, "supervisor", 1 << 20, None, (ProcessNode(2, "server", 123 << 30, 141 << 30),))
    wide = EngineInfo(
        key=KEY,
        model="org/" + 60 * "m",
        state=EngineState.STARTING,
        is_alive=True,
        state_since=time.time() - 90_000,
        progress=Progress(StartPhase.QUEUED, detail="a model with a very long name starts"),
        processes=processes,
        starts=1000,
    )
    head, line, *tree = status_table([wide], tree=True)
    assert "GPU" in head
    assert len(line) <= 100
    assert line.startswith(f"{19 * 'm'}…  {KEY[:8]}  starting: waiting ")
    assert line.endswith("1d01h  123.0G  141.0G       0     -    1000")
    assert tree == ["  1 supervisor (1M)", "  └─ 2 server (123.0G, 141.0G GPU)"]


@pytest.mark.slow
def test_json_is_a_list_of_objects(hand_made: MakeEngine, capsys: Capture) -> None:
    made = hand_made()
    assert main(["status", "--json"]) == 0
    (engine,) = json.loads(capsys.readouterr().out)
    assert (engine["key"], engine["state"], engine["processes"]["pid"]) == (KEY, "ready", made.pid)
    assert engine["log_file"] == str(made.directory.log)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["status"], ["logs"], ["stop"], ["evict"]])
def test_an_unknown_name_lists_what_there_is(hand_made: MakeEngine, capsys: Capture, arguments: list[str]) -> None:
    hand_made()
    assert main([*arguments, "what"]) == 1
    assert f"{KEY}  ready     /models/tiny_chat" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["status"], ["logs"], ["stop"], ["evict"]])
@pytest.mark.slow
def test_an_ambiguous_name_lists_whom_it_may_mean(hand_made: MakeEngine, capsys: Capture, arguments: list[str]) -> None:
    hand_made()
    hand_made(OTHER_KEY)
    assert main([*arguments, "tiny_chat"]) == 1
    error = capsys.readouterr().err
    assert KEY in error
    assert OTHER_KEY in error


@pytest.mark.slow
def test_watch_prints_frames_until_interrupted(hand_made: MakeEngine) -> None:
    hand_made()
    watch = start("status", "--watch", "0.1")
    assert watch.stdout is not None
    lines = [watch.stdout.readline() for _ in range(6)]
    watch.send_signal(signal.SIGINT)
    _, errors = watch.communicate(timeout=10)
    assert [line.split()[:1] for line in lines] == 2 * [["ENGINE"], ["tiny_chat"], []]
    assert (watch.returncode, errors) == (0, "")


@pytest.mark.slow
def test_watch_as_json_is_one_line_each_time(hand_made: MakeEngine) -> None:
    hand_made()
    watch = start("status", "--watch", "0.1", "--json")
    assert watch.stdout is not None
    frames = [json.loads(watch.stdout.readline()) for _ in range(2)]
    watch.send_signal(signal.SIGINT)
    watch.communicate(timeout=10)
    assert [frame[0]["key"] for frame in frames] == [KEY, KEY]


@pytest.mark.slow
def test_watch_redraws_on_a_terminal_as_much_as_fits(hand_made: MakeEngine) -> None:
    hand_made()
    hand_made(OTHER_KEY, model="org/other")
    ours, theirs = pty.openpty()
    watch = start("status", "--watch", "0.1", stdout=theirs, TERM="xterm", COLUMNS="30", LINES="3")
    os.close(theirs)
    seen = b""
    while seen.count(b"\x1b[H\x1b[J") < 2:
        seen += os.read(ours, 4096)
    before, frame, *_ = seen.decode().split("\x1b[H\x1b[J")
    assert before == ""
    assert [len(line) <= 30 for line in frame.splitlines()] == [True, True]
    assert frame.splitlines()[1] == "… 2 more lines"
    watch.send_signal(signal.SIGINT)
    while watch.poll() is None:  # a terminal that nobody reads would hold it
        try:
            os.read(ours, 4096)
        except OSError:
            break
    watch.communicate(timeout=10)
    os.close(ours)
    assert watch.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["status", "--watch", "0.1"], ["logs", "-f"]])
def test_a_reader_that_leaves_makes_no_traceback(hand_made: MakeEngine, arguments: list[str]) -> None:
    made = hand_made()
    made.directory.log.write_text("line\n")
    command = start(*arguments)
    assert command.stdout is not None
    command.stdout.close()
    while command.poll() is None:
        with made.directory.log.open("a") as log:
            log.write("line\n")
        time.sleep(0.05)
    assert command.stderr is not None
    assert command.stderr.read() == ""
    command.stderr.close()
    assert command.returncode == READER_LEFT


# ---- logs


@pytest.mark.slow
def test_logs_of_the_only_engine_alive(hand_made: MakeEngine, capsys: Capture) -> None:
    hand_made(OTHER_KEY, supervisor=None).directory.log.write_text("the other\n")
    made = hand_made()
    made.directory.log.write_text("".join(f"{number}\n" for number in range(200)))
    assert main(["logs", "-n", "2"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "198\n199\n"
    assert KEY in captured.err
    assert main(["logs"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(number) for number in range(100, 200)]
    assert main(["logs", OTHER_KEY[:4]]) == 0
    assert capsys.readouterr().out == "the other\n"


@pytest.mark.slow
def test_logs_in_json(hand_made: MakeEngine, capsys: Capture) -> None:
    line = "(EngineCore pid=7) WARNING 11-29 03:36:23 [x.py:1] one"
    hand_made().directory.log.write_text(f"INFO: old\n{line}\r\nTraceback (most recent call last):\nand")
    assert main(["logs", "--json", "-n", "3"]) == 0
    one, two, three = map(json.loads, capsys.readouterr().out.splitlines())
    assert one.pop("time")[4:] == "-11-29T03:36:23"
    assert one == {"level": "WARNING", "source": "vllm", "process": "EngineCore pid=7", "message": "[x.py:1] one"}
    assert (two["level"], two["time"], two["process"]) == ("ERROR", None, None)
    assert three["message"] == "and"


@pytest.mark.slow
def test_following_logs_in_json_shows_each_line_when_it_is_whole(hand_made: MakeEngine) -> None:
    made = hand_made()
    logs = start("logs", "-f", "--json")
    assert logs.stdout is not None
    made.directory.log.write_bytes(b"INFO: one\nINFO: t")
    assert json.loads(logs.stdout.readline())["message"] == "one"
    with made.directory.log.open("ab") as log:
        log.write(b"wo\n")
    assert json.loads(logs.stdout.readline())["message"] == "two"
    logs.send_signal(signal.SIGINT)
    rest, errors = logs.communicate(timeout=10)
    assert (logs.returncode, rest, errors) == (130, "", "")


def test_logs_without_any_engine(root: Path, capsys: Capture) -> None:
    assert main(["logs"]) == 1
    assert "no engines found in" in capsys.readouterr().err


@pytest.mark.slow
def test_following_waits_for_the_log_and_ends_quietly(hand_made: MakeEngine) -> None:
    made = hand_made()
    logs = start("logs", "-f")
    assert logs.stdout is not None
    time.sleep(0.3)  # most likely it waits by now; if not, the test is only easier
    made.directory.log.write_bytes(b"\x1b[32mgreen\x1b[0m \x1b]0;title\x07")
    with made.directory.log.open("ab") as log:
        log.write(b"10%\r20%\r\nrest\n")
    lines = [logs.stdout.readline() for _ in range(3)]
    logs.send_signal(signal.SIGINT)
    rest, errors = logs.communicate(timeout=10)
    assert lines == ["green 10%\n", "20%\n", "rest\n"]
    assert (logs.returncode, rest, errors) == (130, "", "")


@pytest.mark.slow
def test_a_terminal_gets_the_log_as_it_is(hand_made: MakeEngine) -> None:
    hand_made().directory.log.write_bytes(b"\x1b[32mgreen\x1b[0m\n")
    ours, theirs = pty.openpty()
    logs = start("logs", stdout=theirs)
    os.close(theirs)
    assert os.read(ours, 100) == b"\x1b[32mgreen\x1b[0m\r\n"
    logs.communicate(timeout=10)
    os.close(ours)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("a\x00b\x07c\x9bd", "abcd"),
        ("1%\r2%\r\nü", "1%\n2%\nü"),
    ],
)
def test_control_characters_are_taken_out(text: str, plain: str) -> None:
    assert printable(text) == plain


# ---- stop, evict


@pytest.mark.slow
def test_stop_asks_the_supervisor_and_returns_when_it_is_gone(hand_made: MakeEngine, capsys: Capture) -> None:
    made = hand_made()
    assert main(["stop"]) == 0
    assert made.asked() == [Shutdown(force=False)]
    assert capsys.readouterr().out.startswith("tiny_chat (01234567) stopped in ")
    assert main(["stop", "tiny_chat"]) == 0
    assert capsys.readouterr().out == "tiny_chat (01234567) is not running\n"
    assert main(["stop"]) == 0
    assert capsys.readouterr().out == "no engine is alive\n"


@pytest.mark.slow
def test_evict_leaves_the_supervisor(hand_made: MakeEngine, capsys: Capture) -> None:
    made = hand_made()
    assert main(["evict", KEY[:4]]) == 0
    assert made.asked() == [Evict()]
    assert "evicted in" in capsys.readouterr().out


@pytest.mark.slow
def test_several_engines_are_stopped_by_name_or_all(hand_made: MakeEngine, capsys: Capture) -> None:
    made = [hand_made(), hand_made(OTHER_KEY)]
    assert main(["stop"]) == 1
    assert "name one, or use --all" in capsys.readouterr().err
    assert main(["stop", "--all"]) == 0
    assert [engine.asked()[0] for engine in made] == [Shutdown(), Shutdown()]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["stop", "evict"])
def test_an_engine_that_has_failed_is_not_meant_by_the_only_one(
    hand_made: MakeEngine, capsys: Capture, command: str
) -> None:
    failed = hand_made(OTHER_KEY, state=EngineState.FAILED)
    hand_made()
    assert main([command]) == 0
    assert capsys.readouterr().out.startswith("tiny_chat (01234567) ")
    assert not (failed.directory.path / "asked").exists()
    assert main([command, "tiny_chat"]) == 0  # of this name there is still one that can be ended


@pytest.mark.slow
def test_how_an_end_went_is_told_to_programs_too(hand_made: MakeEngine, capsys: Capture) -> None:
    assert main(["evict", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    hand_made()
    hand_made(OTHER_KEY, supervisor="busy")
    assert main(["stop", "--all", "--timeout", "0.1", "--json"]) == 3
    told = {each["key"]: each for each in json.loads(capsys.readouterr().out)}
    assert (told[KEY]["outcome"], told[OTHER_KEY]["outcome"]) == ("done", "busy")
    assert told[KEY]["message"].startswith("tiny_chat (01234567) stopped in ")


@pytest.mark.slow
def test_a_busy_engine_is_exit_code_3_and_names_who_holds_it(hand_made: MakeEngine, capsys: Capture) -> None:
    made = hand_made(supervisor="busy")
    lease = Lease(made.directory.lease)
    assert lease.try_take()
    began = time.monotonic()
    assert main(["stop", "--timeout", "0.3"]) == 3
    assert time.monotonic() - began >= 0.3
    error = capsys.readouterr().err
    assert f"was not stopped: waited 0.3 s for requests of process {os.getpid()} (" in error
    lease.give_back()
    assert main(["evict", "--timeout", "0"]) == 3
    assert "or that wait for its start" in capsys.readouterr().err
    assert main(["stop", "--force"]) == 0


@pytest.mark.slow
def test_ctrl_c_ends_the_waiting_for_a_busy_engine(hand_made: MakeEngine) -> None:
    made = hand_made(supervisor="busy")
    stop = start("stop")
    wait_until((made.directory.path / "asked").exists, 10, "stop to ask")
    stop.send_signal(signal.SIGINT)
    _, errors = stop.communicate(timeout=10)
    assert stop.returncode == 130
    assert errors == "vllm-local: interrupted; an engine that has begun to stop goes on stopping\n"


# ---- words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0s"), (59.9, "59s"), (60, "1m"), (3599, "59m"), (3600, "1h00m"), (86399, "23h59m"), (100_000, "1d03h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(None, "-"), (0, "0M"), (21 << 20, "21M"), (3 << 29, "1.5G")])
def test_sizes(count: int | None, text: str) -> None:
    assert size(count) == text
