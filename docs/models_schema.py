"""Writes docs/models.schema.json from the declarations: ``python docs/models_schema.py > docs/models.schema.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from shared_engine.gateway.schema import models_schema

if __name__ == "__main__":
    json.dump(models_schema(), sys.stdout, indent=1, ensure_ascii=False)
    sys.stdout.write("\n")
