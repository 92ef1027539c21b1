"""Programs that run as processes of their own, as users' apps do; the first argument is an engine's settings."""
