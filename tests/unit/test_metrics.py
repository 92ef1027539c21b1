"""vLLM's /metrics: one parser for client and supervisor."""

from __future__ import annotations

from shared_engine.runtime.metrics import samples, totals


def test_metrics_are_summed_over_labels() -> None:
    text = (
        "# HELP vllm:num_requests_running x\n"
        'vllm:num_requests_running{engine="0",model_name="a b"} 2.0\n'
        'vllm:num_requests_running{engine="1",model_name="a b"} 3.0\n'
        'vllm:request_success_total{finished_reason="stop"} 7.0\n'
        'vllm:e2e_request_latency_seconds_bucket{le="1"} 7.0\n'
        "process_cpu_seconds_total 3\n"
    )
    assert totals(text) == {"num_requests_running": 5.0, "request_success": 7.0}


def test_a_label_is_read_whatever_others_say() -> None:
    text = 'vllm:x{model_name="engine=\\"7\\" {a}, b",engine="1"} 2.0\nvllm:y 1e3\n'
    x, y = samples(text)
    assert (x.name, x.label("engine"), x.label("absent"), x.value) == ("x", "1", "", 2.0)
    assert (y.name, y.labels, y.value) == ("y", "", 1000.0)


def test_a_share_of_several_engine_cores_is_their_mean() -> None:
    text = "".join(
        f'vllm:kv_cache_usage_perc{{engine="{core}"}} {share}\nvllm:num_requests_running{{engine="{core}"}} {running}\n'
        for core, share, running in ((0, 0.5, 3), (1, 0.25, 1))
    )
    assert totals(text) == {"kv_cache_usage_perc": 0.375, "num_requests_running": 4.0}
