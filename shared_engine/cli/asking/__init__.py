"""What ``run`` and ``chat`` share: what is attached to a prompt, an answer as it comes, and its figures."""
