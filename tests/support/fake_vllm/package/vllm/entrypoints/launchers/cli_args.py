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
    parser.add_argument("--fake", default="{}")
    return parser


def validate_parsed_serve_args(args: argparse.Namespace) -> None:
    pass
