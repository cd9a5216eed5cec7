"""Every route that reaches an engine, by the path that clients use."""

from __future__ import annotations

from deployments.gateway.endpoints.chat import CHAT
from deployments.gateway.endpoints.completions import COMPLETIONS
from deployments.gateway.endpoints.embeddings import EMBEDDINGS
from deployments.gateway.endpoints.endpoint import Endpoint
from deployments.gateway.endpoints.messages import COUNT_TOKENS, MESSAGES
from deployments.gateway.endpoints.responses import RESPONSES
from deployments.gateway.endpoints.tokenization import DETOKENIZE, TOKENIZE

ENDPOINTS: dict[str, Endpoint] = {
    each.path: each
    for each in (CHAT, COMPLETIONS, RESPONSES, MESSAGES, COUNT_TOKENS, EMBEDDINGS, TOKENIZE, DETOKENIZE)
} | {
    # Clients whose base URL ends with /v1. `Endpoint.path` stays the engine's.
    "/v1/tokenize": TOKENIZE,
    "/v1/detokenize": DETOKENIZE,
}
