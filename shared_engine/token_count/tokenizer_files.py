"""What the files beside a tokenizer.json make of it: is it the tokenizer that vLLM uses, its special tokens, templates.

Follows transformers 5.16 to 5.19, which vLLM 0.32 asks for, without importing it. Where the files make another
tokenizer of it, or might, there is a doubt, and the server counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared_engine.model_files.folder import read_json
from shared_engine.token_count.tokenizer_classes import REBUILT_CLASSES, changes_nothing, class_of

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

TOKENIZER = "tokenizer.json"
_CONFIG = "tokenizer_config.json"
_LEGACY_TOKENS = "special_tokens_map.json"
_LEGACY_ADDED = "added_tokens.json"
_TEMPLATE = "chat_template.jinja"
_MORE_TEMPLATES = "additional_chat_templates"
_PROCESSOR_FILES = ("chat_template.json", "processor_config.json", "preprocessor_config.json")
_SENTENCE_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
FILES = (
    "config.json", TOKENIZER, _CONFIG, _LEGACY_TOKENS, _LEGACY_ADDED, *_SENTENCE_CONFIGS, _TEMPLATE, _MORE_TEMPLATES,
    *_PROCESSOR_FILES,
)  # fmt: skip
"""Every file (and folder) that has a say."""

# vLLM has a tokenizer or a chat format of its own for these (vllm/config/model.py).
_OWN_FORMAT_ARCHITECTURES = {
    "MoonshotKimiaForCausalLM", "KimiK3ForConditionalGeneration", "DeepseekV32ForCausalLM", "DeepseekV4ForCausalLM",
    "DeepseekV4ForConditionalGeneration", "DeepseekV41ForCausalLM", "InklingForCausalLM",
    "InklingForConditionalGeneration",
}  # fmt: skip
# Their repositories have, beside tokenizer.json, a file that vLLM prefers, and which need not have been downloaded yet.
_MISTRAL_TYPES = ("mistral", "mistral3", "mixtral", "ministral", "ministral3", "pixtral", "voxtral")
_UNUSUAL_SETTINGS = ("fast_tokenizer_files", "split_special_tokens", "fix_mistral_regex")
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class TokenizerFiles:
    """The files in one folder, read once.

    Args:
        folder: where the tokenizer is.
        model_folder: where the model is; the same, as a rule.
        is_from_hub: they are what was downloaded of a hub repository.
    """

    def __init__(self, folder: Path, model_folder: Path, *, is_from_hub: bool) -> None:
        self._folder = folder
        self._is_from_hub = is_from_hub
        self._served = read_json(model_folder / "config.json")
        self._model = read_json(folder / "config.json")
        self._config = read_json(folder / _CONFIG)
        # Older tokenizer_config.json files do not list added tokens; then these count.
        self._is_legacy = "added_tokens_decoder" not in self._config
        self._legacy = read_json(folder / _LEGACY_TOKENS) if self._is_legacy else {}
        named = self._config.get("tokenizer_class") or self._model.get("tokenizer_class")
        self._class = class_of(self._model.get("model_type"), named)

    @property
    def uses_harmony(self) -> bool:
        """vLLM writes gpt-oss's conversations without a template."""
        return self._served.get("model_type") == "gpt_oss"

    def doubts(self) -> Iterator[str]:
        """Why tokenizer.json may not be what vLLM uses, as far as the files beside it show."""
        if not (self._folder / TOKENIZER).is_file():
            yield f"it has no {TOKENIZER}"
        if not self._model.get("model_type") or "model_name" in self._model or "auto_map" in self._config:
            yield "its files do not show what kind of tokenizer it has"
        if _OWN_FORMAT_ARCHITECTURES.intersection(self._served.get("architectures") or ()):
            yield "vLLM has a tokenizer of its own for it"
        if self._served.get("is_encoder_decoder"):
            yield "it is an encoder-decoder"
        is_mistral = self._is_from_hub and self._model.get("model_type") in _MISTRAL_TYPES
        if is_mistral or (self._folder / "tekken.json").exists() or any(self._folder.glob("tokenizer.model.v*")):
            yield "vLLM may use a tokenizer of Mistral's own kind"
        if any(self._config.get(name) for name in _UNUSUAL_SETTINGS):
            yield f"{_CONFIG} has one of {', '.join(_UNUSUAL_SETTINGS)}"
        if any(read_json(self._folder / name).get("do_lower_case") for name in _SENTENCE_CONFIGS):
            yield "it writes special tokens in lower case"
        if self._class is not None and self._class not in REBUILT_CLASSES:
            yield f"what {self._class} makes of {TOKENIZER} is not known here"
        if self._class is not None and self._config.get("add_prefix_space"):
            yield f"{_CONFIG} has add_prefix_space"

    def doubts_about(self, tokenizer: Tokenizer) -> Iterator[str]:
        """Why vLLM's tokenizer may be another than ``tokenizer``, which is tokenizer.json as it is."""
        if getattr(tokenizer.model, "dropout", None):
            yield "it tokenizes at random"
        if self._class is not None and not changes_nothing(REBUILT_CLASSES[self._class], tokenizer):
            yield f"{self._class} makes another tokenizer of {TOKENIZER}"
        if self._changes_tokens(tokenizer):
            yield f"{_CONFIG} adds or changes tokens"

    def _changes_tokens(self, tokenizer: Tokenizer) -> bool:
        present = {token.content: _flags(token) for token in tokenizer.get_added_tokens_decoder().values()}
        special = {*self.special_tokens(tokenizer).values(), *self._extra_tokens()}
        if not special <= present.keys():
            return True
        if self._class is not None and any(any(present[content]) for content in special):
            return True  # a rebuilt one adds its special tokens again, without flags
        if self._is_legacy:
            added = read_json(self._folder / _LEGACY_ADDED)
            return any(content not in present or tokenizer.token_to_id(content) != added[content] for content in added)
        declared = self._declared_tokens()
        changed = any(present.get(content) != flags for content, flags in declared.items())
        return changed or (self._class is not None and declared.keys() != present.keys())

    def _declared_tokens(self) -> dict[str, tuple[bool, ...]]:
        from tokenizers import AddedToken

        tokens = [AddedToken(**token) for token in self._config["added_tokens_decoder"].values()]
        return {token.content: _flags(token) for token in tokens}

    def special_tokens(self, tokenizer: Tokenizer) -> dict[str, str]:
        """Name -> token, as templates get them."""
        found = dict(REBUILT_CLASSES[self._class].special_tokens) if self._class is not None else {}
        if tokenizer.padding is not None:
            found.setdefault("pad_token", tokenizer.padding["pad_token"])
        given = {**self._config, **self._legacy}
        extra = given.get("extra_special_tokens")
        named = {name: value for name, value in given.items() if name.endswith("_token")}
        for name, value in {**named, **(extra if isinstance(extra, dict) else {})}.items():
            content = _content(value)
            if content is not None:
                found[name] = content
            elif value is None and name in _NAMED_TOKENS:
                found.pop(name, None)
        return found

    def _extra_tokens(self) -> Iterator[str]:
        for given in (self._config, self._legacy):
            for name in ("extra_special_tokens", "additional_special_tokens"):
                tokens = given.get(name)
                for token in tokens if isinstance(tokens, list) else ():
                    yield _content(token) or ""

    def chat_templates(self) -> dict[str, str]:
        """Name -> template; usually one, ``default``. Empty where there is none, or where vLLM may take another."""
        found = self._own_templates()
        # For a model with a processor (of images, say) vLLM prefers the processor's template, unless there are tools.
        of_processor = [read_json(self._folder / name).get("chat_template") for name in _PROCESSOR_FILES]
        if any(template is not None and found != {"default": template} for template in of_processor):
            return {}
        has_processor = any((self._folder / name).exists() for name in _PROCESSOR_FILES)
        return {} if has_processor and len(found) > 1 else found

    def _own_templates(self) -> dict[str, str]:
        files = {file.stem: file for file in (self._folder / _MORE_TEMPLATES).glob("*.jinja")}
        if (self._folder / _TEMPLATE).is_file():
            files.setdefault("default", self._folder / _TEMPLATE)
        if files:
            return {name: file.read_text(encoding="utf-8") for name, file in files.items()}
        template = self._config.get("chat_template")
        if isinstance(template, list):
            return {each["name"]: each["template"] for each in template}
        return {"default": template} if isinstance(template, str) else {}


def _content(token: Any) -> str | None:
    """Of a token as the files write it: a string, or an object; None for anything else."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _flags(token: AddedToken) -> tuple[bool, ...]:
    return (token.lstrip, token.rstrip, token.single_word, token.normalized, not token.special)
