"""The flags the fake looks at."""

from __future__ import annotations

import argparse

from vllm.utils.argparse_utils import FlexibleArgumentParser


def make_arg_parser(parser: FlexibleArgumentParser) -> FlexibleArgumentParser:
    parser.add_argument("--model", required=True)
    parser.add_argument("--uds", required=True)
    parser.add_argument("--max-model-len", type=lambda text: 2048 if text == "auto" else int(text), default=2048)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--enable-sleep-mode", action="store_true")
    for size in ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size", "nnodes"):
        parser.add_argument(f"--{size}", type=int, default=1)
    for count in ("data-parallel-size-local", "api-server-count"):
        parser.add_argument(f"--{count}", type=int)
    parser.add_argument("--fake", default="{}")
    return parser


def validate_parsed_serve_args(args: argparse.Namespace) -> None:
    pass
