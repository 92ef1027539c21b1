"""``vllm-local doctor``."""

from __future__ import annotations

import argparse
import json
import sys

from shared_engine.cli.doctor import diagnose
from shared_engine.cli.exit_codes import DONE, FAILED
from shared_engine.cli.finding import Finding, Outcome
from shared_engine.cli.terminal import tell

EXAMPLES = ("vllm-local doctor", "vllm-local doctor --model Qwen/Qwen3-4B", "vllm-local doctor --no-smoke --json")
INTERRUPTED = "nothing that it started is left running"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="M", help="for the smoke test (default: VLLM_MODEL_PATH, or a tiny one)")
    parser.add_argument("--no-smoke", dest="smoke", action="store_false", help="start no engine")
    parser.add_argument("--json", action="store_true", help="a list of objects")


def run(arguments: argparse.Namespace) -> int:
    def say(text: str) -> None:
        if sys.stderr is not None and sys.stderr.isatty():
            tell(f"  ... {text}")

    findings: list[Finding] = []
    for finding in diagnose(arguments.model, smoke=arguments.smoke, say=say):
        findings.append(finding)
        if not arguments.json:
            print(f"{finding.outcome.value:<4}  {finding.check:<17}  {finding.detail}", flush=True)
            if finding.remedy:
                print(f"{'':<25}-> {finding.remedy}", flush=True)
    if arguments.json:
        print(json.dumps([finding.to_json() for finding in findings], indent=2))
    return FAILED if any(finding.outcome is Outcome.FAIL for finding in findings) else DONE
