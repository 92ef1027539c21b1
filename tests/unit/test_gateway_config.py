"""models.yaml: what it means, and what is said, with its line, of all that is wrong in it."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shared_engine.errors import SettingsError
from shared_engine.gateway.config import OF_ENGINES, GatewayConfig, Key, config_of, read_config
from shared_engine.gateway.config_fields import ApiKey, FileFields, ModelFields
from shared_engine.gateway.listening import Listening
from tests.support.adapters import BRIEF
from tests.support.paths import REPOSITORY, TINY_CHAT

A = "models:\n  a:\n    model: org/a\n"
KEYS = "models: {a: {model: org/a}}\napi_keys:\n"
SCHEMA = REPOSITORY / "docs" / "models.schema.json"


def read(folder: Path, text: str, **environment: str) -> GatewayConfig:
    file = folder / "models.yaml"
    file.write_text(text)
    return read_config(file, environment=environment)


def wrong(folder: Path, text: str, **environment: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        read(folder, text, **environment)
    return str(caught.value).splitlines()


ALL = """\
media_domains: [img.example.com, "*.cdn.net", "*", 10.0.0.1, "::1", xn--mnchen-3ya.de, my_host]
media_networks: [10.0.0.0/8, 192.168.1.1, "fd00::/8"]
defaults: {idle_ttl_s: 600, concurrency_limit: 8}
api_keys:
  - {name: alice, key: "${env.ALICE_KEY}"}
  - name: bob
    key_file: ./bob.key
    models: [small]
    requests_per_minute: 60
    concurrency_limit: ${env.AT_ONCE}
models:
  small:
    model: org/small
    aliases: [one, two]
    ttl: 0
    set_params: {temperature: 0.2, seed: 1}
    max_model_len: ${env.LENGTH}
    lora_adapters: {}
  big:
    base_url: [http://127.0.0.1:1/v1, http://127.0.0.1:2/v1]
    model: org/big
    aliases: {"big:low": {temperature: 0, chat_template_kwargs: {enable_thinking: false}}, huge: }
    queue_limit: 3
    unlisted: true
    metadata: {since: 2026-01-01}
  here: {model: ./folder, pinned: true, preload: true, replicas: 1}
"""


def test_all_that_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "bob.key").write_text("bobs-secret\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("{}")
    config = read(tmp_path, ALL, ALICE_KEY="alices-secret", LENGTH="128", AT_ONCE="4")
    small, big, here = (config.models[name] for name in ("small", "big", "here"))
    assert (small.settings.model, small.settings.max_model_len, small.settings.idle_ttl_s) == (
        "org/small",
        128,
        math.inf,
    )
    assert (big.settings.idle_ttl_s, big.fields.concurrency_limit, big.fields.queue_limit) == (600, 8, 3)
    assert big.settings.is_fleet
    assert big.fields.metadata == {"since": "2026-01-01"}
    assert (here.settings.model, here.settings.pinned) == (str(tmp_path / "folder"), True)
    assert {name: target.model for name, target in config.names.items()} == {
        "small": "small", "one": "small", "two": "small", "big": "big", "big:low": "big", "huge": "big", "here": "here",
    }  # fmt: skip
    assert config.names["one"].set_params == {"temperature": 0.2, "seed": 1}
    assert config.names["big:low"].set_params == {"temperature": 0, "chat_template_kwargs": {"enable_thinking": False}}
    assert config.keys == (
        Key("alice", "alices-secret"),
        Key("bob", "bobs-secret", frozenset({"small"}), requests_per_minute=60, concurrency_limit=4),
    )
    assert "secret" not in repr(config)


@pytest.mark.parametrize(
    ("defaults", "own", "stays_s"),
    [
        ("{}", "{pinned: true}", math.inf),
        ("{ttl: 600}", "{pinned: true}", math.inf),
        ("{idle_ttl_s: 600}", "{pinned: true}", math.inf),
        ("{pinned: true}", "{}", math.inf),
        ("{}", '{pinned: "true"}', math.inf),
        ("{}", "{pinned: 1}", math.inf),
        ("{}", '{pinned: "${env.YES}"}', math.inf),
        ('{pinned: "${env.YES}", ttl: 600}', "{}", 600),
        ("{ttl: 600}", '{pinned: "false"}', 600),
        ("{pinned: true}", '{pinned: "no"}', 1800),
        ("{pinned: true, ttl: 600}", "{}", 600),
        ("{ttl: 600}", "{pinned: true, ttl: 60}", 60),
        ("{}", "{pinned: true, idle_ttl_s: 60}", 60),
        ("{pinned: true}", "{ttl: 60}", 60),
        ("{ttl: 600}", "{pinned: false}", 600),
        ("{pinned: true}", "{pinned: false}", 1800),
    ],
)
def test_a_pinned_model_stays_unless_it_says_how_long(defaults: str, own: str, stays_s: float, tmp_path: Path) -> None:
    model = f"{own[:-1]}, model: org/a}}".replace("{, ", "{")
    config = read(tmp_path, f"defaults: {defaults}\nmodels:\n  a: {model}\n", YES="true")
    assert config.models["a"].settings.idle_ttl_s == stays_s


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: {a: {model: org/a}}\nmodles: 1", "line 2: unknown setting 'modles'; did you mean 'models'?"),
        ("defaults: {}", "line 1: models is missing"),
        ("models: {}", "line 1: there is no model"),
        ("- a", "must have models: with a name for each"),
        ("models:\n  a: [", "line 2: is not YAML"),
        ("models:\n  a: 3", "line 2: models.a = 3: Input should be a valid dictionary"),
        ("models:\n  a:\n    model: org/a\n  a:\n    model: org/b", "line 4: 'a' stands here twice"),
        ("models:\n  1:\n    model: org/a", "line 2: a name must be a text: put 1 in quotes"),
        ("models: &m\n  a: *m", "an alias (*) that means what it stands in"),
        ("models:\n  a:\n    model: !!binary aGk=", "line 3: tag:yaml.org,2002:binary is not used here"),
        ("models:\n  a:\n    model: !!python/name:os.system", "line 3: is not YAML: could not determine a constructor"),
        (
            "models:\n  a:\n    api_key: {{ KEY }}",
            "line 3: a name must be a text: put what begins with { or [ in quotes",
        ),
        ("models:\n  ? [a]\n  : {}", "line 2: a name must be a text"),
        ("models:\n  a:\n    max_model_len: 0x_", "line 3: this can't be read as int: put a text in quotes"),
        ("models:\n  a:\n    max_model_len: !!int big", "line 3: this can't be read as int"),
        ("models:\n  a:\n    ttl: !!float long", "line 3: this can't be read as float"),
        pytest.param(
            "models:\n  a:\n    ttl: " + "9:" * 400 + "5.5", "line 3: this can't be read as float", id="hours"
        ),
        pytest.param("models:\n  a:\n    max_model_len: " + "9" * 5000, "line 3: this can't be read as int", id="long"),
        ("models:\n  a:\n    pinned: !!bool maybe", "line 3: this can't be read as bool"),
        ("models:\n  !!bool a: {}", "line 2: this can't be read as bool"),
        ("models:\n  a:\n    metadata: {since: !!timestamp soon}", "line 3: this can't be read as timestamp"),
        ('models:\n  a:\n    model: "\\UFFFFFFFF"', "line 3: is not YAML"),
        pytest.param("%YAML " + "9" * 5000 + ".1\n---\nmodels:", "line 1: is not YAML", id="version"),
        pytest.param("models: " + "[" * 5000, "is nested too deeply", id="deep", marks=pytest.mark.slow),
        ("models:\n  a:\n    model: ${env.NONE}", "line 3: ${env.NONE}: the environment variable NONE is not set"),
        ("models:\n  a:\n    model: x${NONE}", "line 3: what begins with ${ must be ${env.NAME}"),
        ('models:\n  a:\n    model: "${ env.X }"', "line 3: what begins with ${ must be ${env.NAME}"),
        ("models:\n  a:\n    model: ${env.X-1}", "line 3: what begins with ${ must be ${env.NAME}"),
        ("models:\n  a:\n    model: ${env.X", "line 3: what begins with ${ must be ${env.NAME}"),
        ("models:\n  a${X}: {}", "line 2: what begins with ${ must be ${env.NAME}"),
        (
            A + "    concurrencyLimit: 3",
            "line 4: unknown setting 'concurrencyLimit'; did you mean 'concurrency_limit'?",
        ),
        (A + "    max_modle_len: 3", "line 4: unknown setting 'max_modle_len'; did you mean 'max_model_len'?"),
        (A + "    temperature: 0", "line 4: temperature is a request's: put it under set_params"),
        (A + "    max_model_len: -4", "line 2: models.a: max_model_len (from models.yaml, line 4) = -4"),
        ("defaults:\n  dtype: int3\nmodels:\n  a: {model: org/a}", "dtype (from models.yaml, line 2) = 'int3'"),
        (A + "    queue_limit: -1", "line 4: models.a.queue_limit = -1: Input should be greater"),
        (A + "    ttl: 5\n    idle_ttl_s: 5", "line 4: ttl and idle_ttl_s are the same"),
        (A + "    mode: direct", "models.a: mode: a gateway's engines are processes of their own"),
        (
            A + "    set_params: {model: b}",
            "line 4: models.a.set_params = {'model': 'b'}: 'model' is the request's own",
        ),
        (
            A + "    set_params: {stream: true}",
            "line 4: models.a.set_params = {'stream': True}: 'stream' is the request's",
        ),
        (A + "    set_params: {stream_options: {include_usage: true}}", "'stream_options' is the request's own"),
        (A + "    aliases: {b: {stream: false}}", "line 4: models.a.aliases.b = {'stream': False}: 'stream' is the"),
        (
            A + "    set_params: {keep_alive: 0}",
            "'keep_alive' is not for the model's server: say ttl beside set_params",
        ),
        ("defaults: {set_params: {keep_alive: 0}}\nmodels: {a: {model: org/a}}", "'keep_alive' is not for the model's"),
        (A + "    metadata: {a: [.nan]}", "models.a: set_params, aliases and metadata are JSON"),
        ("models:\n  a:", "line 2: models.a: no model: pass model="),
        (
            "models:\n  a: {model: org/a}\n  b:\n    model: org/b\n    aliases: [c, a]",
            "line 5: 'a' is a name of 'a' already",
        ),
        (
            A + "media_domains:\n- https://img.example.com",
            "line 5: media_domains.0 = 'https://img.example.com': String",
        ),
        (A + "media_domains:\n- img.example.com:80", "line 5: media_domains.0 = 'img.example.com:80': String"),
        (A + "media_networks: [10.0.0.1/8]", "line 4: media_networks.0 = '10.0.0.1/8': 10.0.0.1/8 has host bits set"),
        (A + "max_media: -1", "line 4: max_media = -1: Input should be greater than or equal to 0"),
        (KEYS + "- name: me", "line 3: api_keys.0: give key or key_file, one of them"),
        (
            KEYS + "- {name: me, key: '12345678', requests_per_minute: 0}",
            "line 3: api_keys.0.requests_per_minute: Input should be greater than or equal to 1",
        ),
        (KEYS + "- {name: me, key: '12345678', concurrency_limit: x}", "line 3: api_keys.0.concurrency_limit: Input"),
        (KEYS + "- {name: me, key_file: ./none}", "line 3: key_file = './none' can't be read"),
        (
            KEYS + "- name: me\n  key: '12345678'\n  models: [b]",
            "line 5: the key 'me' names a model that is not there: 'b'",
        ),
        (
            KEYS + "- {name: a, key: '12345678'}\n- {name: b, key: '12345678'}",
            "line 4: the key 'b', or its name, stands there twice",
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    assert any(said in line for line in wrong(tmp_path, text)), wrong(tmp_path, text)


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.com/", "https://app.example.com/page", "app.example.com", "localhost:3000",
        "https://App.example.com", "HTTPS://app.example.com", "https://app.example.com:443", "http://localhost:80",
        "https://*.example.com", "https://me@app.example.com", "https://münchen.de", "http://::1:3000", "https://",
        "http://localhost:*", "chrome-extension://*", "",
    ],
)  # fmt: skip
def test_an_origin_that_no_browser_sends_is_refused(tmp_path: Path, origin: str) -> None:
    (line,) = wrong(tmp_path, f"{A}cors_origins:\n- '{origin}'")
    said = (
        f"line 5: cors_origins.0 = {origin!r}: must be an origin as browsers send it, such as https://app.example.com"
    )
    assert said in line


@pytest.mark.parametrize("origin", ["*", "null"])
def test_pages_are_not_let_in_all_at_once(tmp_path: Path, origin: str) -> None:
    (line,) = wrong(tmp_path, f"{A}cors_origins: ['{origin}']")
    assert f"line 4: cors_origins.0 = '{origin}': would let every web page ask: name the origins, such as" in line


def test_origins_that_browsers_send(tmp_path: Path) -> None:
    origins = (
        "https://app.example.com", "http://localhost", "http://localhost:3000", "http://[::1]:8080",
        "https://localhost:80", "http://192.168.1.5", "https://xn--mnchen-3ya.de", "chrome-extension://abcdefgh",
        "moz-extension://0e1b-4c", "app://obsidian.md", "tauri://localhost", "file://",
    )  # fmt: skip
    assert read(tmp_path, f"{A}cors_origins: {json.dumps(origins)}").fields.cors_origins == origins


@pytest.mark.parametrize(
    "host", ["gw.example.com:8000", "http://gw.example.com", "*", "*.example.com", "[::1]", "gw.", "gw/", "münchen", ""]
)
def test_a_host_that_no_request_names_is_refused(tmp_path: Path, host: str) -> None:
    (line,) = wrong(tmp_path, f"{A}allowed_hosts:\n- '{host}'")
    assert f"line 5: allowed_hosts.0 = {host!r}: must be a name or address alone, such as gw.example.com" in line


def test_hosts_that_requests_name(tmp_path: Path) -> None:
    hosts = ("gw.example.com", "GW", "my_host", "10.0.0.1", "::1", "xn--mnchen-3ya.de")
    assert read(tmp_path, f"{A}allowed_hosts: {json.dumps(hosts)}").fields.allowed_hosts == hosts


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    text = "models:\n  a: {model: org/a, ttl: -1}\n  b: {model: org/b, dtype: x, nmae: y}\nmax_body_bytes: 1"
    lines = wrong(tmp_path, text.replace("max_body_bytes: 1", "api_keys: []"))
    assert len(lines) == 3
    assert [next(word for word in ("ttl", "dtype", "nmae") if word in line) for line in lines] == [
        "ttl",
        "nmae",
        "dtype",
    ]


def test_a_key_is_in_no_message(tmp_path: Path) -> None:
    lines = wrong(
        tmp_path, "models: {a: {model: org/a}}\napi_keys:\n- {name: me, key: hunter2}\n- {key: swordfish}\n- x"
    )
    assert len(lines) == 3
    assert not any(word in line for line in lines for word in ("hunter2", "swordfish"))


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("'${HUNTER2}'", "what begins with ${ must be ${env.NAME}, the variable NAME of the environment"),
        ("${ env.HUNTER2 }", "what begins with ${ must be ${env.NAME}"),
        ("$HUNTER2_LONG", "the key 'me' begins with $, as a shell's variable does: write ${env.NAME}"),
        ("hunter2-hünter2", "the key 'me' must be 8 or more letters, digits and signs of ASCII, without blanks"),
        ("hunter2 hunter2", "the key 'me' must be 8 or more"),
        ('"hunter2\\n"', "the key 'me' must be 8 or more"),
        ('"hunter2\\0hunter2"', "the key 'me' must be 8 or more"),
        ("${env.SPLIT}", "the key 'me' must be 8 or more"),
    ],
)
def test_what_can_not_be_a_key_is_refused_and_not_shown(tmp_path: Path, key: str, said: str) -> None:
    (line,) = wrong(tmp_path, f"{KEYS}- name: me\n  key: {key}", SPLIT="hunter2\nhunter2")
    assert f"line 4: {said}" in line
    assert "hunter2" not in line.lower()


def test_a_key_ends_before_the_end_of_its_line(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-a-file\r\n")
    text = "- {name: a, key: '${env.K8S}'}\n- {name: b, key_file: ./key}\n- name: c\n  key: |\n    in-a-block\n"
    config = read(tmp_path, KEYS + text, K8S="from-a-secret\n")
    assert [key.secret for key in config.keys] == ["from-a-secret", "from-a-file", "in-a-block"]


def test_a_variable_may_have_in_it_what_begins_one(tmp_path: Path) -> None:
    config = read(tmp_path, KEYS + "- {name: me, key: '${env.KEY}'}", KEY="pa${env.KEY}ss")
    assert config.keys[0].secret == "pa${env.KEY}ss"


def test_keys_that_are_wrong_are_not_said_to_be_the_same(tmp_path: Path) -> None:
    lines = wrong(tmp_path, KEYS + "- {name: a, key: 'bad key one'}\n- {name: b, key_file: ./none}")
    assert ["twice" in line for line in lines] == [False, False]


def test_a_secret_of_a_server_is_in_no_message(tmp_path: Path) -> None:
    text = "models:\n  a: {base_url: 'http://127.0.0.1:1', api_key: hunter2, basic_auth: 'me:swordfish'}"
    assert not any(word in line for line in wrong(tmp_path, text) for word in ("hunter2", "swordfish"))


def test_a_variable_sends_no_model_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"VLLM_API_URL": "http://10.0.0.1/v1", "VLLM_API_KEY": "k", "VLLM_DTYPE": "float16"}.items():
        monkeypatch.setenv(name, value)
    config = read(tmp_path, "models:\n  here: {model: org/a}\n  there: {base_url: 'http://127.0.0.1:1'}")
    here, there = config.models["here"].settings, config.models["there"].settings
    assert (here.modes, here.dtype) == (("local",), "float16")
    assert there.api_key is None


def test_a_file_that_everybody_may_write_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text("models: {a: {model: org/a}}")
    (tmp_path / "models.yaml").chmod(0o666)
    with pytest.raises(SettingsError, match="writable for everybody"):
        read_config(tmp_path / "models.yaml")


def test_models_without_a_file() -> None:
    config = config_of(["org/name", str(TINY_CHAT)])
    assert list(config.models) == ["org/name", TINY_CHAT.name]
    with pytest.raises(SettingsError, match="no such folder"):
        config_of(["./nothing"])


def test_no_model_takes_the_name_of_another(tmp_path: Path) -> None:
    first, second = (tmp_path / name / "m" for name in ("x", "y"))
    for folder in (first, second):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    told = f"MODEL {second}: 'm' is a name of '%s' already; give it another one in a config file: models: {{another:"
    with pytest.raises(SettingsError, match=re.escape(told % "m")):
        config_of([str(first), str(second)])
    for entry, name in ("m: {model: org/a}", "m"), ("a: {model: org/a, aliases: [m]}", "a"):
        (tmp_path / "models.yaml").write_text(f"models: {{{entry}}}")
        with pytest.raises(SettingsError, match=re.escape(told % name)):
            read_config(tmp_path / "models.yaml", [str(second)])
        assert list(read_config(tmp_path / "models.yaml", ["org/m"]).models) == [name, "org/m"]


def test_equal_files_are_equal_models(tmp_path: Path) -> None:
    """What did not change is kept when a file is read again."""
    first, second = (read(tmp_path, "models: {a: {model: org/a, aliases: [b]}, c: {model: org/c}}") for _ in range(2))
    other = read(tmp_path, "models: {a: {model: org/a, aliases: [b]}, c: {model: org/c, ttl: 3}}")
    assert first.models == second.models
    assert (first.models["a"] == other.models["a"], first.models["c"] == other.models["c"]) == (True, False)


@pytest.mark.parametrize(
    ("host", "keys", "allows", "is_open"),
    [
        ("127.0.0.1", False, False, True), ("::1", False, False, True), ("localhost", False, False, True),
        ("127.8.8.8", False, False, True), ("0.0.0.0", False, False, False), ("::", False, False, False),
        ("10.0.0.1", False, False, False), ("example.com", False, False, False), ("0.0.0.0", True, False, True),
        ("0.0.0.0", False, True, True),
    ],
)  # fmt: skip
def test_an_address_of_other_machines_needs_keys(
    tmp_path: Path, host: str, keys: bool, allows: bool, is_open: bool
) -> None:
    config = read(tmp_path, "models: {a: {model: org/a}}" + "\napi_keys: [{name: me, key: '12345678'}]" * keys)
    listening = Listening(host, allows_unauthenticated=allows)
    if is_open:
        listening.check(config)
        return
    with pytest.raises(SettingsError, match="name api_keys in the config file, or say --allow-unauthenticated"):
        listening.check(config)


# ---- the schema


def schema() -> Any:
    return json.loads(SCHEMA.read_text())


@pytest.mark.slow
def test_the_schema_is_what_the_declarations_say() -> None:
    """``python docs/models_schema.py > docs/models.schema.json`` writes it."""
    command = [sys.executable, "docs/models_schema.py"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    made = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True, env=environment).stdout
    assert SCHEMA.read_text() == made
    assert set(schema()["$defs"]["Model"]["properties"]) == {*ModelFields.model_fields, *OF_ENGINES}


def test_the_schema_knows_what_a_file_may_have() -> None:
    model = schema()["$defs"]["Model"]
    assert model["additionalProperties"] is False
    assert schema()["additionalProperties"] is False
    assert set(schema()["properties"]) == set(FileFields.model_fields)
    limits = model["properties"]["queue_limit"]
    assert limits["anyOf"] == [{"minimum": 0, "type": "integer"}, {"type": "string", "pattern": r"\$\{env\."}]
    assert limits["description"]
    named = set(re.findall(r"#/\$defs/(\w+)", SCHEMA.read_text()))
    assert named == set(schema()["$defs"])


def test_the_file_of_the_page_is_right(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (REPOSITORY / "docs" / "gateway.md").read_text(), re.DOTALL)
    (tmp_path / "models").mkdir()
    (tmp_path / "adapters").mkdir()
    (tmp_path / "models" / "coder").symlink_to(TINY_CHAT)
    (tmp_path / "adapters" / "sql").symlink_to(BRIEF)
    secret = tmp_path / "ci"
    secret.write_text("the-key-of-ci")
    text = text.replace("/run/secrets/ci", str(secret))
    config = read(tmp_path, text, ALICE_KEY="alices-secret", GPU_KEY="k")
    assert {name: target.model for name, target in config.names.items()} == {
        "qwen": "qwen", "gpt-4o-mini": "qwen", "qwen:fast": "qwen", "coder": "coder", "sql": "coder", "far": "far",
    }  # fmt: skip


def test_the_page_names_every_setting_of_the_file() -> None:
    page = (REPOSITORY / "docs" / "gateway.md").read_text()
    names = (*FileFields.model_fields, *ModelFields.model_fields, *ApiKey.model_fields)
    assert [name for name in names if f"`{name}`" not in page] == []
