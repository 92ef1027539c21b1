"""The fake has no environment to set up."""


def cli_env_setup() -> None:
    pass
