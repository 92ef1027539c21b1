"""``vllm-local batch``."""

from __future__ import annotations

import argparse
import functools
import json

from shared_engine.cli.argument_types import count
from shared_engine.cli.batch.asking import Asked
from shared_engine.cli.batch.dry_run import SAMPLE, estimate
from shared_engine.cli.batch.job import Job, run_job
from shared_engine.cli.batch.output import STDOUT
from shared_engine.cli.batch.rows import STDIN, Input
from shared_engine.cli.engine_arguments import add_engine_arguments, engine_of
from shared_engine.cli.exit_codes import DONE, FAILED, SOME_FAILED
from shared_engine.cli.exit_codes import INTERRUPTED as INTERRUPTED_CODE
from shared_engine.cli.sampling_arguments import add_sampling_arguments, given_parameters
from shared_engine.cli.terminal import tell
from shared_engine.params import GenerationParams

EXAMPLES = (
    "vllm-local batch requests.jsonl answers.jsonl --model Qwen/Qwen3-4B",
    "vllm-local batch questions.csv answers.jsonl --model Qwen/Qwen3-4B --prompt-column question --temperature 0",
    "vllm-local batch requests.jsonl answers.jsonl --base-url http://a:8000/v1,http://b:8000/v1 --order done",
    "vllm-local batch requests.jsonl answers.jsonl --model Qwen/Qwen3-4B --dry-run",
)
MAX_RETRIES = 10
"""About a minute: a batch can wait for a server that is busy, or comes back, where a person would not."""
INTERRUPTED = "the same command goes on from there"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "JSON lines (OpenAI's batch format, or a prompt or messages in each), .csv, .tsv or .parquet"
    parser.add_argument(
        "input", metavar="IN", help=f'{text}; "{STDIN}" for the standard input, which can\'t be resumed'
    )
    text = f'JSON lines, one for each of IN; what is in it already is kept; "{STDOUT}" for the standard output'
    parser.add_argument("output", metavar="OUT", help=text)
    text = "folder of a model, or its id on the Hugging Face hub (default: that of VLLM_MODEL_PATH, or a config file)"
    parser.add_argument("--model", metavar="MODEL", help=text)
    text = "of the answers: as in IN (the default), or as they are done"
    parser.add_argument("--order", choices=("input", "done"), default="input", help=text)
    text = "so many requests at once (default: as many as keep the engine full)"
    parser.add_argument("--max-inflight", type=functools.partial(count, least=1), metavar="N", help=text)
    parser.add_argument("--retry-errors", action="store_true", help="ask again what OUT has an error for")
    parser.add_argument(
        "--prompt-column", default="prompt", metavar="NAME", help='where prompts are (default "prompt")'
    )
    parser.add_argument("--system", metavar="TEXT", help="a system message before each prompt")
    parser.add_argument("--raw", action="store_true", help="continue prompts as they are, without the chat template")
    text = f"write nothing: count tokens, and estimate the time from a sample of {SAMPLE} lines that are asked"
    parser.add_argument("--dry-run", action="store_true", help=text)
    text = "for --dry-run: ask so many; 0: none, so no time is estimated, and an engine rarely needed"
    parser.add_argument("--sample", type=count, default=SAMPLE, metavar="N", help=text)
    parser.add_argument("--json", action="store_true", help="the summary as an object on stdout (stderr if OUT is -)")
    add_engine_arguments(parser, model=False)
    add_sampling_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    engine = engine_of(arguments, max_retries=MAX_RETRIES)
    job = Job(
        rows=Input(arguments.input, arguments.prompt_column),
        output=arguments.output,
        asked=Asked(GenerationParams(**given_parameters(arguments)), arguments.system, arguments.raw),
        order=arguments.order,
        max_inflight=arguments.max_inflight,
        retry_errors=arguments.retry_errors,
    )
    say = tell if arguments.output == STDOUT else print
    if arguments.dry_run:
        arguments.interrupted = "nothing was written"
        estimated = estimate(engine, job, arguments.sample)
        say(json.dumps(estimated.to_json()) if arguments.json else "\n".join(estimated.lines(job.rows.unit)))
        return DONE
    counts = run_job(engine, job)
    if arguments.json:
        say(json.dumps(counts.to_json(arguments.output)))
    else:
        tell("\n".join(counts.lines(arguments.output, job.rows.unit)))
    if counts.is_interrupted:
        return INTERRUPTED_CODE
    if counts.stopped is not None:
        return FAILED
    return SOME_FAILED if counts.errors else DONE
