"""What the LangChain and the LlamaIndex adapter share: all of the engine that an adapter may touch beside the public
modules. Owns the fields of an engine as a pydantic mixin, media parts and local files, tools, structured output. Must
know neither framework.
"""
