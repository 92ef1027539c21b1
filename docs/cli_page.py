"""Writes docs/cli.md from the parser of the command: ``python docs/cli_page.py > docs/cli.md``.

What the parser does not know, a page's head and end and a paragraph for each command, stands here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from shared_engine.cli.engine_arguments import reveal_all
from shared_engine.cli.main import COMMANDS, module_of, parser_of

# Its screens are taken by the tests: tests/support/screens.py.
HEAD = """\
# Command line

`vllm-local` asks models, and looks after all engines of your user. It shares them with your apps: what is loaded for one is there for the
other. `vllm-local COMMAND --help` shows a command's usual options, `--help-all` every one, `vllm-local --version` the version.

```console
$ vllm-local pull Qwen/Qwen3-4B
$ vllm-local show Qwen/Qwen3-4B
$ vllm-local load Qwen/Qwen3-4B
```

What a terminal shows of a start (on `examples/tiny_chat`, the lines one after the other), and then:

<!-- screen: load -->
```text
$ vllm-local load examples/tiny_chat
tiny_chat: importing vLLM                                                 00:10
tiny_chat: reading the model's config                                     00:11
tiny_chat: loading weights 0/1 |                                        | 00:11
tiny_chat: making the KV cache and warming up                             00:11
tiny_chat: starting the HTTP server                                       00:11
tiny_chat (981b8917) is ready after 12.0 s; it leaves 30m after its last use
```

<!-- screen: ps -->
```text
$ vllm-local ps
NAME       KEY       SIZE  DEVICE  CONTEXT  DOES  UNTIL
tiny_chat  981b8917  1.2G  cpu 5%     2048  idle  in 29m
```

This page is written by `docs/cli_page.py` from the command's own parser.
"""
PROSE = {
    "run": """\
Asks one thing: the answer alone is on stdout, everything else on stderr. Words after MODEL and what is piped in are the prompt. Without a prompt, on
a terminal, it is `chat`. [chat.md](chat.md#run) has the rules.""",
    "chat": """\
A conversation with history, completion, Markdown, thinking, pictures, and a meter of the context: [chat.md](chat.md#chat). Needs `pip install
'vllm-local[cli]'`.""",
    "pull": """\
Fetches what vLLM needs of a model, as vLLM would at its first start: one form of the weights, the tokenizer, the templates, and the licence.
It shows a bar on a terminal, goes on where an interrupted one has stopped, and says before it begins whether the disk has room. It uses the
huggingface_hub of the Python that has vLLM. With `HF_HUB_OFFLINE` set nothing is looked up; that a model is here already is then no error.""",
    "list": """\
Lists the models in the hub's cache (`HF_HOME`, `HF_HUB_CACHE`, the setting `download_dir`), and the folders that engines were started on since the
runtime directory was made. A download that was interrupted is shown as incomplete.""",
    "rm": """\
Deletes all that the hub's cache (and the setting `download_dir`) holds of a model, also of a download that was interrupted, without asking; nothing of a
model that is loaded or being fetched, and no folder of yours. Several are all checked before one is deleted.""",
    "show": """\
Tells what a model's files say, and what vLLM-local makes of them: kind, weights, context, inputs, chat template, [parsers](langchain.md#tools-and-agents), licence, and
whether it fits into the memory that is free now, with the settings given. It starts nothing and asks no hub. How many tokens the KV cache
holds is an estimate, and left out for models whose cache is not alike in all layers.""",
    "load": """\
Loads a model and returns when it answers. The engine is the one that apps with equal settings use: `load` with your app's settings, and its
first call does not wait. An engine that runs already is left as it is, and kept at least as long as this says.

`--pin` keeps it until `unload`, `stop`, or its own end: neither time nor other models take its memory. That is what `pinned=True` and
`idle_ttl_s=inf` mean together; they are the engine's until its next start. `--pooling` is for embeddings and scores.""",
    "ps": """\
Shows the loaded models as users of Ollama know it. SIZE is the memory of all processes (of the GPUs where the driver tells it), DEVICE its share of the device's
memory, CONTEXT the longest prompt and answer together, DOES what the server says it does now, UNTIL when the model leaves memory if nobody uses
it until then. `memory is short` means: only another model can take its place; `unloaded by hand (pinned)`: nothing does.

`--json` prints the objects of [status](#json), with `running` and `waiting` requests (null: the server did not say in a second).""",
    "serve": """\
The gateway: OpenAI's protocol at one address, models behind it that come and go. [gateway.md](gateway.md) has the file, the routes and who may ask. Needs
`pip install 'vllm-local[gateway]'`.""",
    "batch": """\
Writes an answer to every line of IN into OUT. OUT is the only state: after `kill -9`, Ctrl-C, a full disk or the engine's death the same command goes
on, with no line lost, twice or half written. [A file of requests](batch.md) has the formats, and what is promised.""",
    "embed": """\
Prints a JSON array for each text, one on a line; `--json` one object for all. The engine is the one of `VLLMEmbeddings` and `VLLMEmbedding` with equal
settings.""",
    "rerank": """\
Prints score and document, the best first. The model is a cross-encoder with one label, or an embedding model, whose cosine is the score then.""",
    "tokens": """\
`count` counts a prompt's tokens, with the special ones around it, as the server does, without starting an engine where
[that can be known](engine.md#counting-tokens). `show` prints the tokens of a text by themselves: id, and the vocabulary's spelling.""",
    "bench": """\
Sends prompts of random words, PARALLEL at once, and measures: the time to the first token (median), the tokens of all answers in a second, and those of
each from its first token on (median). It is a look at one machine, with one shape of requests, on an engine that others may use at the same
time; the first request is not counted. `-` (null) is the speed of a server whose streams do not say how many tokens they had.
[NOTES](../benchmarks/NOTES.md) has measurements to rely on.""",
    "config": """\
Shows every [setting](settings.md), its value, and where that came from: an option, a variable, a [file](#config-files), or the default. Secrets are
hidden. It checks the values as an engine would, and names variables that seem to be meant for a setting and are read by none.""",
    "install": """\
Makes a Python environment with vLLM and remembers it, so that all apps of your user find it, wherever `--path` puts it. Without an option
it installs the build that this machine can run, and says why that one: the CUDA build where the NVIDIA driver shows a GPU and is new
enough, otherwise the CPU build. `--cuda` installs the CUDA build anywhere, as for an image of another machine. `--path` chooses the
folder; the default is `engine-cpu-VERSION` or `engine-cuda-VERSION`, by vLLM's version, in `~/.local/share/vllm-local`. Running it again only checks;
an interrupted install is made again. An environment that works is never changed: after an update of vllm-local the new vLLM gets a folder beside it, and
you delete the old one when nothing runs with it any more. Linux only; the CPU build is for x86-64; aarch64 was not tried.""",
    "status": """\
Lists the engines that are alive, or failed within the last hour. `--all` adds those that have ended, `--tree` the processes of each,
`--watch` repeats it every SECONDS (default 2) until Ctrl-C.

```console
$ vllm-local status
ENGINE     KEY       STATE                          FOR   RAM  LEASES  IDLE  STARTS
tiny_chat  f5b0e905  ready                          19s  1.1G       1     -       3
Qwen3-4B   c213196e  starting: loading weights 1/3   7s  2.3G       0     -       1
```

LEASES is the number of processes that have requests in flight; IDLE is the time since the last request ended; STARTS counts the
engine's starts. A GPU column appears where the NVIDIA driver reports memory per process (tested
with a fake of its library, not on a GPU). It starts nothing, and looking keeps no engine awake.""",
    "logs": """\
Prints vLLM's log, the last 100 lines by default. `-f` goes on with new lines, across restarts of the engine and rotations of the file.
`--json` prints an object for each line: `time`, `level`, `source` (`vllm`, `supervisor`, `launcher`), `process`, `message` ([logging](logging.md)).
Without ENGINE: the engine that is alive, or the last one used.""",
    "evict": """\
Frees the engines' memory: the model leaves, and the launcher keeps vLLM imported so that the next start is quick. Waits up to S seconds
(default 30) for requests in flight. Returns when the memory is free.

`--json` prints a list of objects with `key`, `model`, `outcome` (`done`, `busy` or `failed`) and `message`.""",
    "stop": """\
Ends the engines and leaves no process. Waits like `evict`; with `--force` it does not wait, and requests in flight fail with
`EngineStoppedError`. `--json` as of `evict`.""",
    "doctor": """\
Checks what an engine needs (misspelt variables, interpreter, whether its build of vLLM can run here, vLLM, GPU or C++ compiler, RAM, `/dev/shm`, the runtime directory, the systemd service, the model cache) and prints a remedy for each
problem. Unless one of them rules it out, it then starts an engine, lets it write ten tokens, and ends it: on M, or `VLLM_MODEL_PATH`, or a tiny model with random
weights. `--no-smoke` leaves the start out. Values of secret-looking environment variables never appear in the output.

`--json` prints a list of objects with `check`, `outcome` (`ok`, `warn` or `fail`), `detail` and `remedy`.""",
    "completion": """\
`install` has your shell complete commands, options, their words, models and engines: it writes the shell's script, and for bash and zsh one
line in `~/.bashrc` or `~/.zshrc`, and says so. `remove` undoes that. `show` prints the script, for other places.""",
}
ENGINE_OPTIONS = """
## Options of every engine

Commands with a MODEL take every [setting](settings.md) as an option. `--help` leaves those of the second half to `--help-all`.
MODEL is a folder, an id on the hub, or the last part of the name of a model that is on this disk (`Qwen3-4B`, as `list` and `ps` show it). `-` is the
model of the environment, of a config file, or of the server at `--base-url`, where any other name is that server's.

"""
PARAMETER_OPTIONS = """
## Options of an answer

Commands that generate text take every [parameter](settings.md#parameters-of-a-request) of a request as an option.

"""
END = """\
## Naming an engine

ENGINE is the first 4 or more digits of a key, a model, or the last component of a model's name. If several engines have the name, the
one that is alive is meant, and of those that have all ended the last used; if several are alive, the command lists them and ends with 1.
`stop` and `evict` without ENGINE mean the only engine that is alive. An engine that has failed counts where there is no other.

## Config files

Commands that use an engine take each [setting](settings.md) as an option (`--max-model-len 8192`; `--help` shows the usual ones, `--help-all`
all), then from the environment, then from `./vllm-local.toml`, then from `~/.config/vllm-local/config.toml` (`XDG_CONFIG_HOME`): TOML, with settings
under their names. A text that begins with `./` or `../` is a path beside its file.

```toml
model = "Qwen/Qwen3-4B"
max_model_len = 8192
idle_ttl_s = 600

[engine_args]
max_num_seqs = 64
```

`--config FILE` reads that file instead, `--config none` none. A program reads them only when it asks: `EngineSettings.from_file()`. A file that others
may write, or that belongs to another user, is refused. Settings can name programs to run (`python`, `trust_remote_code`), so run
`vllm-local` in folders that you trust, as you would `make`.

## Exit codes

| code | meaning |
|---|---|
| 0 | done (`doctor`: nothing failed, there may be warnings) |
| 1 | failed; the reason is on stderr |
| 2 | wrong usage: an option, a setting or the input must be corrected |
| 3 | busy: requests were in flight for all of `--timeout`; stderr names the processes |
| 4 | `batch`, `embed`, `rerank`: all is answered, some of it by an error |
| 130 | interrupted with Ctrl-C (leaving `status --watch` that way is 0) |
| 141 | the reader of the output closed it, as in `vllm-local status \\| head -1` |

An error is a line on stderr; `--debug`, with any command, shows where it came from.

Ctrl-C ends a command at any moment without a traceback, but for the first hundredths of a second, in which Python itself starts. In a command that is
put in the background with `&` it is ignored, as in other programs.

## JSON

`status --json` prints a list of objects; with `--watch`, one list per line. The fields are those of `EngineInfo`, which `Engine.status()`
returns, and a few derived ones. null: not known, or does not apply.

| field | meaning |
|---|---|
| `key`, `mode`, `model`, `base_url` | names the engine's directory; `local`; a folder or hub id; null for local engines |
| `state`, `state_since` | one of the [states](architecture.md#states), and when it was entered, in seconds since the epoch |
| `is_alive` | true while a supervisor owns the engine |
| `progress`, `start_phase` | how far a start is, in words, and its phase |
| `starts`, `start_s` | how often it was started, and how long the last start took, in seconds |
| `max_model_len` | longest prompt and answer together, in tokens, as the server says itself |
| `leases`, `lease_holders` | how many processes have requests in flight, and their PIDs |
| `idle_for_s`, `last_used` | seconds since the last request ended; when that was, in seconds since the epoch |
| `devices`, `pinned` | `cpu` or `cuda:0`, ...; true if it is never evicted to make room for another engine |
| `idle_ttl_s`, `leaves_at` | seconds from the end of the last request until the model leaves memory (null: never, or not known), and when that will be if nobody asks until then, in seconds since the epoch |
| `last_error` | why the last start or run failed |
| `supervisor_pid`, `server_pid` | PIDs; the server's is also its process group |
| `processes` | a tree of `pid`, `name`, `memory_bytes`, `gpu_memory_bytes`, `children` |
| `memory_bytes`, `gpu_memory_bytes` | of all processes together |
| `socket`, `log_file` | paths of the server's socket and of the log |
| `urls` | where it listens for other programs too, by [`serve_tcp`](serve_tcp.md) |
| `vllm_version` | the version of vLLM |
| `leftovers` | files that a killed supervisor left behind; the next start removes them |
| `member`, `in_flight`, `members` | of fleets and replicas: nothing here, where each engine has a line of its own |
| `life` | what its starts and ends have come to since the machine was booted: `starts`, `returns`, `start_seconds`, `evictions`, `failures`, `counters` ([statistics](metrics.md)) |
"""


def page() -> Iterator[str]:
    """The page, in pieces."""
    yield HEAD
    yield "\n- " + " · ".join(f"[{name}](#{name})" for name in COMMANDS)
    sections = ("Options of every engine", *(["Options of an answer"] if _options("param_") else []))
    ends = [line.removeprefix("## ") for line in END.splitlines() if line.startswith("## ")]
    yield "\n- " + " · ".join(f"[{name}](#{name.lower().replace(' ', '-')})" for name in (*sections, *ends)) + "\n"
    for name, command in COMMANDS.items():
        parser = parser_for(name)
        yield f"\n## {name}\n\n`vllm-local {name} {usage_of(parser)}`\n"
        if command.aliases:
            yield f"\nAlso {', '.join(f'`{alias}`' for alias in command.aliases)}.\n"
        yield f"\n{PROSE[name] if name in PROSE else command.text[0].upper() + command.text[1:] + '.'}\n"
        yield from option_table(own_actions(parser))
        yield "\n```console\n" + "".join(f"$ {line}\n" for line in module_of(name).EXAMPLES) + "```\n"
    yield ENGINE_OPTIONS
    yield from option_table([*_options("config"), *_options("setting_")])
    if _options("param_"):
        yield PARAMETER_OPTIONS
        yield from option_table(_options("param_"))
    yield "\n" + END


def parser_for(name: str) -> argparse.ArgumentParser:
    """Of one command, with all of its options."""
    actions = parser_of([name])._actions
    (commands,) = [action for action in actions if isinstance(action, argparse._SubParsersAction)]
    parser = commands.choices[name]
    assert isinstance(parser, argparse.ArgumentParser)
    reveal_all(parser)
    return parser


def _options(prefix: str) -> list[argparse.Action]:
    """Those of all commands whose values go under names with this prefix, each once."""
    found = (each for name in COMMANDS for each in parser_for(name)._actions if each.dest.startswith(prefix))
    return list({each.dest: each for each in found}.values())


def own_actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Without those that stand in a table of their own, and those of every command."""
    shared = ["help", "help_all", "debug"]
    if any(each.dest.startswith("setting_") for each in parser._actions):
        shared += ["config", "model"]
    return [
        each
        for each in parser._actions
        if (each.dest not in shared or (each.dest == "model" and each.option_strings))
        and not each.dest.startswith(("setting_", "param_"))
    ]


def usage_of(parser: argparse.ArgumentParser) -> str:
    """What may stand after the command's name."""
    has_settings = any(each.dest.startswith("setting_") for each in parser._actions)
    words = ["[OPTION ...]"] if has_settings else []
    words += [form_of(each) for each in parser._actions if not each.option_strings]
    exclusive = {id(each): group for group in parser._mutually_exclusive_groups for each in group._group_actions}
    done: list[int] = []
    for each in own_actions(parser):
        group = exclusive.get(id(each))
        if not each.option_strings or id(group) in done:
            continue
        if group is None:
            words.append(f"[{form_of(each)}]")
        else:
            words.append(f"[{' | '.join(map(form_of, group._group_actions))}]")
            done.append(id(group))
    return " ".join(words)


def form_of(action: argparse.Action) -> str:
    """``MODEL``, ``[TEXT ...]``, ``-n LINES``, ``--json``."""
    word = action.metavar or "|".join(map(str, action.choices or ())) or action.dest.upper()
    if not action.option_strings:
        return {"?": f"[{word}]", "*": f"[{word} ...]", "+": f"{word} [{word} ...]"}.get(str(action.nargs), str(word))
    flag = min(action.option_strings, key=len) if len(action.option_strings[-1]) > 10 else action.option_strings[-1]
    flag = action.option_strings[0] if action.option_strings[0][1] != "-" else flag
    if action.nargs == 0:
        return flag
    return f"{flag} [{word}]" if action.nargs == "?" else f"{flag} {word}"


def option_table(actions: Sequence[argparse.Action]) -> Iterator[str]:
    shown = [each for each in actions if each.help]
    if shown:
        yield "\n| | |\n|---|---|\n"
    for action in shown:
        name = form_of(action)
        if len(action.option_strings) > 1 and action.option_strings[0][1] != "-":
            name = (
                f"{action.option_strings[0]}`, `{name.replace(action.option_strings[0], action.option_strings[-1], 1)}"
            )
        elif len(action.option_strings) > 1:
            name = "`, `".join(action.option_strings)
        text = str(action.help).replace("%%", "%").replace("|", "\\|")
        yield f"| `{name.replace('|', chr(92) + '|')}` | {text} |\n"


if __name__ == "__main__":
    sys.stdout.writelines(page())
