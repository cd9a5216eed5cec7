"""The few figures of `GET /metrics`, under names of our own: nobody may take them for a real engine's."""

from __future__ import annotations

from deployments.sim.engine import SimEngine


def prometheus_text(engine: SimEngine) -> str:
    lines: list[str] = []
    for name, kind, text, value in (
        ("requests_running", "gauge", "Sequences that hold a slot.", engine.slots.running),
        ("requests_waiting", "gauge", "Sequences that wait for a slot.", engine.slots.waiting),
        ("prompt_tokens_total", "counter", "Prompt tokens prefilled.", engine.prompt_tokens_total),
        ("output_tokens_total", "counter", "Output tokens produced.", engine.output_tokens_total),
    ):
        full_name = f"sprat_sim_{name}"
        lines += [f"# HELP {full_name} {text}", f"# TYPE {full_name} {kind}", f"{full_name} {value}"]
    return "\n".join(lines) + "\n"
