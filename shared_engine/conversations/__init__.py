"""What a model's chat template takes of a conversation, and conversations in a form that it takes.

Pure, but for a look at a model's files; must not know servers.
"""
