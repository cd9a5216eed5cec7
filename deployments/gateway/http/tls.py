"""TLS by file."""

from __future__ import annotations

import ssl

from cluster.config import GatewayConfig
from cluster.errors import StartError


def tls_context(gateway: GatewayConfig) -> ssl.SSLContext | None:
    """None: plain HTTP. Raises StartError where the files cannot be used."""
    if gateway.tls is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(gateway.tls.certificate, gateway.tls.key)
    except (OSError, ssl.SSLError) as error:
        raise StartError(
            f"gateway.tls: {gateway.tls.certificate} and {gateway.tls.key} cannot be used ({error}). "
            "Both must be PEM files of the same key, readable by this user."
        ) from error
    return context
