"""Which words of vLLM our patterns wait for, and whether a release has them."""

from __future__ import annotations

import re
from pathlib import Path

from shared_engine.adapting import media_errors
from shared_engine.request import lengths, refusals
from shared_engine.runtime import progress
from shared_engine.supervisor import ends, hangs, server_tree, start_failures
from shared_engine.vllm_versions import release_of
from tests.support.vllm_sources import fragments, has, texts

# Words that our patterns wait for too, and that others write: Python and argparse, torch, transformers,
# huggingface_hub, safetensors, aiohttp, Pillow.
OF_OTHERS = {
    ("unrecognized argument",),
    ("unrecognized arguments",),
    ("error: argument ",),
    ("MemoryError",),
    ("No such file or directory: ",),
    ("No space left on device",),
    ("Cannot allocate memory",),
    ("OutOfMemoryError",),
    ("no NVIDIA driver",),
    ("() expected at most 0 argument",),
    ("Value error, ", " [type="),
    ("libcuda.so",),
    ("does not recognize this architecture",),
    (" is not a local folder and is not a valid model identifier",),
    ("Can't load",),
    ("couldn't find",),
    ("We couldn't connect to",),
    ("outgoing traffic has been disabled",),
    ("Repo id must be ",),
    ("SafetensorError: ",),
    ("Cannot connect to host",),
    (", message='", "', url='"),
    ("cannot identify image file",),
    ("Non-base64 digit",),
    ("ncorrect padding",),
}
# Words that a release does not have: not yet, or no more.
NOT_IN = {
    "0.26": {
        "currently busy and cannot accept new requests",
        "prefill token backlog limit",
        "Starting torch.compile",
        "Insufficient space in ",
    },
    "0.28": {"currently busy and cannot accept new requests", "prefill token backlog limit", "Starting torch.compile"},
    "0.30": {"Starting torch.compile"},
    "0.31": {"Starting torch.compile"},
    "0.33": {"Available memory on node "},
}

BARS = (
    "Loading safetensors checkpoint shards",
    r"% Completed \| \{n_fmt\}/\{total_fmt\} \[",
    r"Capturing .*CUDA graphs",
)
WAITED_FOR: dict[str, tuple[str, ...]] = {
    "progress": (*(re.escape(line) for line, _ in progress._LINES), *BARS),
    "metrics": tuple(f"vllm:{name}" for name in (hangs._STEPS.removesuffix("_count"), *hangs._REQUESTS)),
    "headers": (hangs.RANK_HEADER,),
    "failed starts": (
        *(pattern for pattern, _ in start_failures._CAUSES),
        start_failures._LACKS_MEMORY.pattern,
        r"Failed core proc\(s\): ",
    ),
    "ends": (*map(re.escape, ends.FAILED_BY_ITSELF), server_tree.TITLE),
    "refusals": (
        *map(re.escape, refusals._ENGINE_BUSY),
        *lengths.VLLMS,
        *(pattern.pattern for pattern in (lengths.ANSWER, lengths.NO_ROOM, lengths.LITTLE_ROOM, lengths.NO_INPUT)),
        *map(re.escape, (refusals._EMPTY_TEXT, refusals._NOT_MATRYOSHKA, refusals._NO_EMBEDDINGS)),
        *map(re.escape, (refusals._LOADED_BEFORE, refusals._ENGINE_FAILED, *refusals._OTHER_TASK)),
    ),
    "media": (
        *map(re.escape, (media_errors._TEXT_ONLY, media_errors._RAISABLE)),
        media_errors._TOO_MANY.pattern,
        refusals.NOT_LOADED.pattern,
        media_errors._NOT_UNDERSTOOD.pattern,
        media_errors._NOT_KNOWN.pattern,
    ),
}
"""Regular expressions by what they tell."""


class Words:
    """The strings of one release's files.

    Args:
        sources: the folder of the package ``vllm``.
    """

    def __init__(self, version: str, sources: Path) -> None:
        self._lacks = NOT_IN.get(release_of(version).minor, set())
        self._texts = texts(sources)

    def missing(self, *patterns: str) -> set[tuple[str, ...]]:
        """What these patterns wait for, and nobody writes, though this release should."""
        # Fields, where vLLM writes them.
        plain = [re.sub(r"\((\?:)?image\|audio\|video\)", ".*", pattern) for pattern in patterns]
        wanted = set().union(*(fragments(pattern) for pattern in plain))
        assert wanted
        expected = {each for each in wanted - OF_OTHERS if each[0] not in self._lacks}
        return {each for each in expected if not has(self._texts, each)}
