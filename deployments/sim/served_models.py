"""The names that the simulator answers to. The replica changes them in process; no HTTP route can."""

from __future__ import annotations


class ServedModels:
    def __init__(self, models: tuple[str, ...]) -> None:
        self.base_model = models[0]
        self._adapters = dict.fromkeys(models[1:])

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(self._adapters)

    def __contains__(self, model: object) -> bool:
        return model == self.base_model or model in self._adapters

    def load_adapter(self, adapter: str) -> None:
        self._adapters[adapter] = None

    def unload_adapter(self, adapter: str) -> None:
        self._adapters.pop(adapter, None)
