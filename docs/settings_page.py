"""Writes docs/settings.md from the declarations: ``python docs/settings_page.py > docs/settings.md``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, SecretStr
from pydantic_core import PydanticUndefined

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from shared_engine import params, settings
from shared_engine.declared import Decides, docstrings

HEAD = """\
# Settings

Every setting has one name: as a keyword of `Engine`, a field of `EngineSettings` and of both adapters' classes.
An argument wins over its environment variable. These variables are not passed on to vLLM.
`vllm-local` has them as options (`--max-model-len`) and reads [config files](cli.md#config-files) too; a program does
with `EngineSettings.from_file()`.
In the adapters `seed` is a request's; the engine's own is `engine_args={"seed": ...}` there.
This page is written by `docs/settings_page.py` from the declarations in `shared_engine/settings.py` and `params.py`.
"""
CPU = """
On a CPU build KV caches are 1/16 of the RAM, 4 GiB at most for each worker, unless
`engine_args={"kv_cache_memory_bytes": ...}` or `VLLM_CPU_KVCACHE_SPACE` says otherwise.

Not measured on a GPU yet: `gpu_memory_utilization`, several devices ([more](parallel.md)), `visible_devices`,
`sleep_after_s`, and what `enforce_eager` saves and costs there.
"""
PARAMETERS = """
## Parameters of a request

Fields of `GenerationParams`, and keywords of every request of `Engine` and both adapters; in the adapters all but `n`,
`response_format`, `continue_final_message`, `keep_raw`, `extra_headers` and `session` are also arguments of the
constructor, where `timeout` and `max_retries` are the settings of these names. What is not given is not sent: the
defaults above apply, then the model's generation_config. A call's parameter replaces a default that contradicts it; two
in one call are refused.

| parameter | what it does |
|---|---|
"""


def in_cell(text: str) -> str:
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


def default_of(model: type[BaseModel], name: str) -> str:
    value = model.model_fields[name].get_default(call_default_factory=True)
    if value in (None, PydanticUndefined, {}) or isinstance(value, SecretStr):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def page() -> Iterator[str]:
    """The page, in pieces."""
    of_params = docstrings(params)
    of_settings = of_params | docstrings(settings)
    yield HEAD
    for decides in Decides:
        has_flags = decides is Decides.ENGINE
        yield f"\n## {decides.value}\n\n| setting | variable | default |{' vLLM |' * has_flags} |\n"
        yield f"|---|---|---|{'---|' * has_flags}---|\n"
        for name, setting in settings.SETTINGS.items():
            if setting.decides is decides:
                flag = f" {f'`{setting.flag}`' if setting.flag else ''} |" if has_flags else ""
                default = default_of(settings.EngineSettings, name)
                yield f"| `{name}` | `{setting.env}` | {default} |{flag} {in_cell(of_settings[name])} |\n"
        if has_flags:
            yield CPU
    yield PARAMETERS
    by_class = (params.DefaultFields, params.SamplingFields, params.ChatFields, params.GenerationParams)
    names = dict.fromkeys(
        name for kind in by_class for name in kind.model_fields if name not in params.CallParams.model_fields
    )
    for name in (*names, *params.CallParams.model_fields):
        yield f"| `{name}` | {in_cell(of_params[name])} |\n"


if __name__ == "__main__":
    sys.stdout.writelines(page())
