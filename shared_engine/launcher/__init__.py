"""What runs in vLLM's own Python, by path. Standard library and vLLM only. ``launcher.py`` is the first file of the
program that imports vLLM once and forks servers; ``export_tokenizer.py`` hands a model's tokenizer to the app,
``fetch_model.py`` fetches a model, by huggingface_hub.
"""

from pathlib import Path

LAUNCHER = Path(__file__).resolve().with_name("launcher.py")
TOKENIZER_EXPORTER = LAUNCHER.with_name("export_tokenizer.py")
MODEL_FETCHER = LAUNCHER.with_name("fetch_model.py")
