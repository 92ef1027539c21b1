"""Ray Serve LLM on vLLM's CPU build, until it is told to end. In Ray's environment, with the engine's on PYTHONPATH.

Its one argument, in JSON: ``folder``, ``port``, and ``models``: folder and vLLM's settings by name.
"""

from __future__ import annotations

import json
import signal
import sys

import ray
from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app

asked = json.loads(sys.argv[1])
ray.init(num_cpus=8, include_dashboard=False, object_store_memory=200 << 20, _temp_dir=asked["folder"])
serve.start(http_options={"host": "127.0.0.1", "port": asked["port"]})
configs = [
    LLMConfig(
        model_loading_config={"model_id": name, "model_source": folder},
        accelerator_config={"kind": "cpu"},
        deployment_config={"autoscaling_config": {"min_replicas": 1, "max_replicas": 1}},
        engine_kwargs=settings,
    )
    for name, (folder, settings) in asked["models"].items()
]
serve.run(build_openai_app({"llm_configs": configs}), blocking=False)
print("serving", flush=True)
signal.sigwait([signal.SIGTERM])
serve.shutdown()
ray.shutdown()
