"""Handlers of calls, whatever the shape of the call: what interceptors take apart and put together again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

_MAKERS: dict[tuple[bool, bool], Callable[..., grpc.RpcMethodHandler[Any, Any]]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
"""Handlers by whether requests and responses stream."""


def method_of(handler: grpc.RpcMethodHandler[Any, Any]) -> Any:
    """The servicer's method. Its stubs have the types of blocking servers, so it is of any type here."""
    return handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream


def with_method(
    handler: grpc.RpcMethodHandler[Any, Any], method: Any, deserialize: Any, serialize: Any
) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler of the same shape with another method, and what makes messages of bytes and bytes of messages."""
    return _MAKERS[bool(handler.request_streaming), bool(handler.response_streaming)](method, deserialize, serialize)
