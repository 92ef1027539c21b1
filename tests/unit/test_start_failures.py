"""Causes found in logs of real failed starts of vLLM 0.32 (shortened to the lines that matter)."""

from __future__ import annotations

import time

import pytest

from shared_engine.supervisor.start_failures import explain, lacks_memory

LAST = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"


@pytest.mark.parametrize(
    ("lines", "part"),
    [
        (["vllm serve: error: unrecognized arguments: --no-such-flag 1"], "vLLM does not know --no-such-flag 1"),
        (
            ["vllm serve: error: argument --max-num-seqs: invalid int value: 'x'"],
            "vLLM refused a setting: --max-num-seqs",
        ),
        (
            [
                "RuntimeError: Insufficient space in /dev/shm for shared-memory allocation: 160 MiB required, 64 MiB "
                "free. Increase /dev/shm (e.g. --shm-size or --ipc=host).",
                LAST,
            ],
            "/dev/shm is too small, through which vLLM's processes talk: Insufficient space in /dev/shm for "
            "shared-memory allocation: 160 MiB required, 64 MiB free",
        ),
        (
            ["huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name'", LAST],
            "the model was not found",
        ),
        (
            [
                "(APIServer pid=7) ERROR 11-21 09:48:08 [repo_utils.py:126] Error parsing config for /m: The checkpoint"
                " has model type `x` but Transformers does not recognize this architecture."
            ],
            "does not support the model: Error parsing config for /m",
        ),
        (
            [
                "(Worker pid=26453) ERROR 11-29 04:53:35 [multiproc_executor.py:953] RuntimeError: "
                "_C::static_scaled_fp8_quant() expected at most 0 argument(s) but received 4 argument(s). Declaration: "
                "_C::static_scaled_fp8_quant() -> ()",
                LAST,
            ],
            "lacks a kernel that the model's quantization needs: _C::static_scaled_fp8_quant",
        ),
        (
            [
                "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
                "  Value error, Quantization method specified in the model config (awq) does not match the "
                "quantization method specified in the `quantization` argument (awq_marlin). [type=value_error, x]",
            ],
            "vLLM refused a setting: Quantization method specified in the model config (awq) does not match the "
            "quantization method specified in the `quantization` argument (awq_marlin).",
        ),
        (
            [
                "pydantic_core._pydantic_core.ValidationError: 2 validation errors for SchedulerConfig",
                "max_num_batched_tokens",
                "  Input should be greater than or equal to 1 [type=greater_than_equal, input_value=0, input_type=int]",
                "    For further information visit https://errors.pydantic.dev/2.14/v/greater_than_equal",
                "(APIServer pid=7) max_num_seqs",
                "(APIServer pid=7)   Input should be greater than or equal to 1 [type=greater_than_equal, "
                "input_value=0, input_type=int]",
                "(APIServer pid=7)     For further information visit https://errors.pydantic.dev/2.14/v/greater_than",
            ],
            "vLLM refused a setting: max_num_batched_tokens = 0: Input should be greater than or equal to 1; "
            "max_num_seqs = 0: Input should be greater than or equal to 1",
        ),
        (
            [
                "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder for "
                "the specified revision on the local disk and outgoing traffic has been disabled. To enable repo "
                "look-ups and downloads online, pass 'local_files_only=False' as input.",
                LAST,
            ],
            "the model is not on this disk, and HF_HUB_OFFLINE keeps it from being fetched: unset that, or fetch the "
            "model where the hub can be reached (`vllm-local pull`)",
        ),
        (["ValueError: Model architectures ['Foo'] are not supported for now."], "does not support"),
        (
            ["ValueError: User-specified max_model_len (9999) is greater than the derived max_model_len"],
            "max_model_len is too large",
        ),
        (
            ["ValueError: ... Based on the available memory, the estimated maximum model length is 128.", LAST],
            "KV cache is too small",
        ),
        (
            ["ValueError: Available memory on node 0 (1/2 GiB) on kv cache allocation is less than requested memory"],
            "not enough memory",
        ),
        (
            ["safetensors_rust.SafetensorError: Error while deserializing header: file not fully covered", LAST],
            "weights are damaged",
        ),
        (["MemoryError", LAST], "weights are damaged"),
        (["OSError: [Errno 28] No space left on device: '/root/.cache/vllm/x'", LAST], "a disk is full, of the model"),
        (["RuntimeError: Data processing error: I/O error: No space left on device (os error 28)", LAST], "is full"),
        (["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", LAST], "out of GPU memory"),
        (["(EngineCore pid=1) ERROR 11-21 09:00:00 [core.py:1] KeyError: 'lm_head'", LAST], "KeyError: 'lm_head'"),
        (
            ["RuntimeError: No CUDA GPUs are available"],
            "no usable GPU: No CUDA GPUs are available; `vllm",
        ),
        (
            [
                "(APIServer pid=7) RuntimeError: Failed to infer device type, please set the environment variable "
                "`VLLM_LOGGING_LEVEL=DEBUG` to turn on verbose logging to help debug the issue."
            ],
            "no usable GPU: Failed to infer device type; `vllm-local install --cpu` makes",
        ),
        (
            ["ValueError: Available memory on node 0 (1/2 GiB) on startup is less than desired CPU memory. Lower it."],
            "or free some: Available memory on node 0 (1/2 GiB) on startup is less than desired CPU memory. Lower it.",
        ),
    ],
)
def test_the_cause_is_told_not_the_last_line(lines: list[str], part: str) -> None:
    cause = explain(["INFO start", *lines])
    assert cause is not None
    assert part in cause
    assert "Engine core initialization failed" not in cause
    assert "local_files_only" not in cause


@pytest.mark.parametrize(
    ("cores", "cause"),
    [
        ("{'EngineCore': -15}", "vLLM's EngineCore was killed by SIGTERM (from outside)"),
        (
            "{'EngineCore_DP0': 1, 'EngineCore_DP1': -9}",
            "vLLM's EngineCore_DP1 was killed by SIGKILL (from outside, or",
        ),
        ("{'EngineCore': 1}", None),
    ],
)
def test_the_signal_that_has_ended_the_core_is_named(cores: str, cause: str | None) -> None:
    found = explain(["INFO start", LAST.replace("{}", cores)])
    assert found is None if cause is None else (found or "").startswith(cause)


def test_a_cause_of_its_own_comes_before_the_signal() -> None:
    lines = ["RuntimeError: NCCL error", LAST.replace("{}", "{'EngineCore': -6}")]
    assert explain(lines) == "RuntimeError: NCCL error; vLLM's EngineCore was killed by SIGABRT"


def test_a_log_without_a_cause_gives_none() -> None:
    assert explain(["INFO all is well"]) is None
    assert explain([LAST]) is None


@pytest.mark.parametrize(
    ("line", "is_memory"),
    [
        ("ValueError: Free memory on device cuda:0 (1.0/79.6 GiB) on startup is less than desired GPU memory", True),
        ("ValueError: Available memory on node 0 (0.1/15.6 GiB) on kv cache allocation is less than requested", True),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", True),
        ("OSError: [Errno 12] Cannot allocate memory", True),
        ("ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`", False),
        ("ValueError: To serve at least one request, ... the estimated maximum model length is 128.", False),
        ("INFO Available KV cache memory: 1.00 GiB", False),
        ("", False),
    ],
)
def test_another_engine_is_the_cause_only_where_memory_is_taken(line: str, is_memory: bool) -> None:
    assert lacks_memory(["INFO something", f"(EngineCore pid=7) ERROR 11-21 09:48:08 [core.py:1] {line}", LAST]) is (
        is_memory
    )


@pytest.mark.timeout(30)
def test_long_lines_are_looked_through_fast() -> None:
    """The supervisor does nothing else meanwhile."""
    began = time.monotonic()
    assert explain(["x" * 12_000] * 4 + ["a b " * 3_000] * 4 + ["OSError: gone", LAST]) == "OSError: gone"
    assert time.monotonic() - began < 1
