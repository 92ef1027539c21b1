"""Clients of the ``openai`` package, whose requests go to an engine. Must not know where an engine's requests go.

openai is optional, and imported by the first client.
"""
