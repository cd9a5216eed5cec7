"""What `--systems` takes. Apart from `registry.py`, whose imports the command line should not wait for."""

DIRECT = "direct"
"""The stub engine itself, with nothing before it."""

DEFAULT_SYSTEMS = (DIRECT, "sprat", "sprat-2", "vllm-router", "litellm", "ray-serve")
SYSTEMS = (*DEFAULT_SYSTEMS, "sprat+learned", "sprat+cascade", "ray-serve-default")
