"""``vllm-local rerank``."""

from __future__ import annotations

import argparse
import functools

from shared_engine.cli.argument_types import count
from shared_engine.cli.commands.embed import add_truncation, told
from shared_engine.cli.commands.load import loading_engine
from shared_engine.cli.engine_arguments import add_engine_arguments
from shared_engine.cli.input_texts import texts_of
from shared_engine.cli.table import as_json
from shared_engine.observe.log_reader import printable

EXAMPLES = (
    'vllm-local rerank BAAI/bge-reranker-v2-m3 "what is it?" "a document" "another document"',
    'vllm-local rerank BAAI/bge-reranker-v2-m3 "what is it?" --top 3 --json < documents.txt',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser)
    parser.add_argument("query", metavar="QUERY", help="what the documents are to fit")
    text = "a document; without any, each line of --file or of what is piped in that is not blank is one"
    parser.add_argument("documents", nargs="*", metavar="DOCUMENT", help=text)
    parser.add_argument("--file", metavar="FILE", help="UTF-8, a document on each line")
    text = "only so many, the best ones"
    parser.add_argument("--top", type=functools.partial(count, least=1), metavar="N", help=text)
    add_truncation(parser)
    parser.add_argument("--json", action="store_true", help="one object with all scores, the model and its usage")


def run(arguments: argparse.Namespace) -> int:
    documents = texts_of(arguments.documents, arguments.file, "DOCUMENT")
    with loading_engine(arguments, is_pooling=True) as engine:
        result = engine.rerank(
            arguments.query,
            documents,
            top_n=arguments.top,
            truncate_prompt_tokens=arguments.truncate,
            lora=arguments.lora,
            on_error=arguments.on_error,
        )
    if arguments.json:
        ranked = [
            {"index": each.index, "relevance_score": each.relevance_score, "document": documents[each.index]}
            for each in result.results
        ]
        usage = {"prompt_tokens": result.usage.prompt_tokens}
        print(as_json({"model": result.model, "results": ranked, "usage": usage}))
    else:
        for each in result.results:
            score = "      -" if each.relevance_score is None else f"{each.relevance_score:7.4f}"
            print(f"{score}  {printable(documents[each.index])}")
    return told(result.failures, "document")
