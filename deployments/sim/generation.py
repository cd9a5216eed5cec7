"""From a request body to planned answers: checks with vLLM's words, then one answer per choice."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from deployments.sim import errors
from deployments.sim.answer import Answer, write_text, write_words
from deployments.sim.body import ChatBody, CompletionBody, Function, GenerationBody, NamedToolChoice
from deployments.sim.prompt import Prompt
from deployments.sim.schema_example import example
from deployments.sim.served_models import ServedModels
from deployments.sim.settings import SimSettings

# vLLM's own bound (VLLM_MAX_N_SEQUENCES).
MAX_CHOICES = 16384


@dataclass(frozen=True, slots=True)
class Generation:
    """All that has to be produced for one request."""

    request_id: str
    model: str
    prompt_tokens: int
    answers: tuple[Answer, ...]
    stream: bool
    include_usage: bool
    top_logprobs: int | None = None
    """How many alternatives to each token are told; None: no probabilities at all."""

    @property
    def output_tokens(self) -> int:
        return sum(len(answer.tokens) for answer in self.answers)


@dataclass(frozen=True, slots=True)
class Limit:
    """The request's own bound on output tokens, under the field name that it used."""

    param: str
    tokens: int | None


@dataclass(frozen=True, slots=True)
class ForcedCall:
    """A tool call that the answer has to be. As in vLLM a named tool finishes with `stop`."""

    function: Function
    finish_reason: str

    def write(self, prompt_tokens: int, limit_tokens: int) -> Answer:
        arguments = example(self.function.parameters)
        text = _json(arguments if isinstance(arguments, dict) else {})
        return write_text(
            text, prompt_tokens, limit_tokens, tool=self.function.name, finish_reason=self.finish_reason
        )


@dataclass(frozen=True, slots=True)
class Planner:
    settings: SimSettings
    served: ServedModels

    def chat(self, body: ChatBody, answer_id: str) -> Generation:
        limit = Limit("max_tokens", body.max_tokens)
        if body.max_completion_tokens is not None:
            limit = Limit("max_completion_tokens", body.max_completion_tokens)
        call = _forced_call(body)
        generation = self._plan(body, answer_id, [Prompt.of_text(body.text)], limit, call)
        return replace(generation, top_logprobs=body.top_logprobs or 0) if body.logprobs else generation

    def completion(self, body: CompletionBody, answer_id: str) -> Generation:
        prompts = body.prompts
        if not prompts or not all(prompt.tokens for prompt in prompts):
            message = "Either prompt or prompt_embeds must be provided and non-empty."
            raise errors.malformed_body(message, "prompt")
        return self._plan(body, answer_id, prompts, Limit("max_tokens", body.max_tokens), None)

    def model(self, wanted: str | None) -> str:
        """The one that answers. Raises EngineError (404) for a name that is not served."""
        model = wanted or self.served.base_model
        if model not in self.served:
            raise errors.unknown_model(model, self.served.base_model)
        return model

    def _plan(
        self,
        body: GenerationBody,
        request_id: str,
        prompts: list[Prompt],
        limit: Limit,
        call: ForcedCall | None,
    ) -> Generation:
        if body.stream_options and not body.stream:
            message = "Stream options can only be defined when `stream=True`."
            raise errors.malformed_body(message, "stream_options")
        model = self.model(body.model)
        choices = 1 if body.n is None else body.n
        if not 1 <= choices <= MAX_CHOICES:
            raise errors.bad_value(f"n must be from 1 to {MAX_CHOICES}, got {choices}.", "n")
        fixed = _fixed_text(body)
        answers: list[Answer] = []
        for prompt in prompts:
            room_tokens = _room_tokens(limit, prompt.tokens, self.settings.context_tokens)
            for index in range(choices):
                if call is not None:
                    answers.append(call.write(prompt.tokens, room_tokens))
                elif fixed is not None:
                    answers.append(write_text(fixed, prompt.tokens, room_tokens))
                else:
                    answers.append(self._words(body, prompt, room_tokens, limit, index))
        return Generation(
            request_id=request_id,
            model=model,
            prompt_tokens=sum(prompt.tokens for prompt in prompts),
            answers=tuple(answers),
            stream=bool(body.stream),
            include_usage=bool(body.stream_options and body.stream_options.include_usage),
        )

    def _words(
        self, body: GenerationBody, prompt: Prompt, room_tokens: int, limit: Limit, index: int
    ) -> Answer:
        return write_words(
            prompt,
            room_tokens,
            limit_is_stated=limit.tokens is not None,
            seed=(body.seed or 0) + index,
            stops=body.stops,
            settings=self.settings,
        )


def _room_tokens(limit: Limit, prompt_tokens: int, context_tokens: int) -> int:
    """How many output tokens may come. As in vLLM 0.32, a prompt and a limit that fit each by itself but
    not together are no error: the limit shrinks to what is left."""
    if limit.tokens is not None and limit.tokens > context_tokens:
        raise errors.too_many_output_tokens(limit.param, limit.tokens, context_tokens)
    if prompt_tokens > context_tokens:
        raise errors.prompt_too_long(prompt_tokens, context_tokens)
    if limit.tokens is not None and limit.tokens < 1:
        raise errors.bad_value(f"max_tokens must be at least 1, got {limit.tokens}.", "max_tokens")
    left_tokens = context_tokens - prompt_tokens
    if left_tokens < 1:
        raise errors.no_room_for_output(prompt_tokens, context_tokens)
    return left_tokens if limit.tokens is None else min(limit.tokens, left_tokens)


def _fixed_text(body: GenerationBody) -> str | None:
    """JSON that the request asks for, or None where words will do."""
    if body.response_format is None or body.response_format.type == "text":
        return None
    if body.response_format.type == "json_object":
        return _json({"simulated": True})
    if body.response_format.json_schema is None:
        message = "When response_format type is 'json_schema', the 'json_schema' field must be provided."
        raise errors.malformed_body(message, "response_format")
    return _json(example(body.response_format.json_schema.json_schema or {"type": "object"}))


def _json(value: object) -> str:
    """Not orjson: a schema's constants may be numbers beyond 64 bits."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _forced_call(body: ChatBody) -> ForcedCall | None:
    """The call that the request insists on. Left to itself, the simulator calls none."""
    if body.tools == []:
        message = "`tools` must not be an empty array. Either provide at least one tool or omit the field."
        raise errors.malformed_body(message, "tools")
    if body.tool_choice is None or body.tool_choice == "none":
        return None
    if not body.tools:
        raise errors.malformed_body("When using `tool_choice`, `tools` must be set.", "tool_choice")
    if isinstance(body.tool_choice, NamedToolChoice):
        wanted = body.tool_choice.function.name
        for tool in body.tools:
            if tool.function.name == wanted:
                return ForcedCall(tool.function, "stop")
        message = "The tool specified in `tool_choice` does not match any of the specified `tools`"
        raise errors.malformed_body(message, "tool_choice")
    if body.tool_choice != "required":
        return None
    # Loops of agents end: what they called before is not called again.
    new = [tool.function for tool in body.tools if tool.function.name not in body.called]
    return ForcedCall(new[0] if new else body.tools[-1].function, "tool_calls")
