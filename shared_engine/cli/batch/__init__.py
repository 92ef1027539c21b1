"""``vllm-local batch``: a file of requests in, a file of answers out, resumed after any interruption.

The output file is the only state. Each of its lines begins with an id that names the line of the input, a hash of
that line's text, and one of the model and the parameters.
"""
