"""One request: where it goes (an endpoint), its bytes, its answer, what a failure means, and whether to try again. Owns
all HTTP. Must not know which process of an engine does what, nor any framework.
"""
