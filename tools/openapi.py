"""Writes docs/openapi.json: the protos' `google.api.http` rules and comments as OpenAPI 3.1. `make proto` runs it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from google.api import annotations_pb2, http_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)

from triptych.v1 import rules_pb2

ROOT = Path(__file__).parents[1]
PACKAGE = ".triptych.v1."
HTTP_BODY = ".google.api.HttpBody"
Json = dict[str, Any]

SCALARS: dict[int, Json] = {
    FieldDescriptorProto.TYPE_DOUBLE: {"type": "number", "format": "double"},
    FieldDescriptorProto.TYPE_FLOAT: {"type": "number", "format": "float"},
    FieldDescriptorProto.TYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptorProto.TYPE_UINT32: {"type": "integer", "format": "uint32", "minimum": 0},
    FieldDescriptorProto.TYPE_INT64: {"type": "string", "format": "int64"},
    FieldDescriptorProto.TYPE_UINT64: {"type": "string", "format": "uint64"},
    FieldDescriptorProto.TYPE_FIXED64: {"type": "string", "format": "uint64"},
    FieldDescriptorProto.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptorProto.TYPE_STRING: {"type": "string"},
    FieldDescriptorProto.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
}
"""As protobuf's JSON has them: numbers of 64 bits are texts."""
WELL_KNOWN: dict[str, Json] = {
    ".google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    ".google.protobuf.Duration": {"type": "string", "pattern": r"^-?\d+(\.\d+)?s$"},
    ".google.protobuf.Struct": {"type": "object", "additionalProperties": True},
    ".google.protobuf.NullValue": {"type": "null"},
}
STATUS: Json = {
    "type": "object",
    "description": "google.rpc.Status. `docs/errors.md` lists the reasons in its details.",
    "properties": {
        "code": {"type": "integer", "description": "Code of gRPC, for example 5 for NOT_FOUND."},
        "message": {"type": "string", "description": "One sentence."},
        "details": {
            "type": "array",
            "description": "ErrorInfo with the reason, BadRequest with the field, RetryInfo with a delay.",
            "items": {"type": "object", "properties": {"@type": {"type": "string"}}, "required": ["@type"]},
        },
    },
}
STREAM = "A line of JSON for each message; server-sent events for callers that accept `text/event-stream`."


class Named(NamedTuple):
    """A message or an enum of the contract, with its comment and those of its parts, in their order."""

    proto: DescriptorProto | EnumDescriptorProto
    comment: str
    parts: Sequence[str]


class Contract:
    """What the protos say."""

    def __init__(self, files: Sequence[FileDescriptorProto]) -> None:
        self.types: dict[str, Named] = {}
        self.maps: dict[str, FieldDescriptorProto] = {}
        """The values of maps, by the type of an entry."""
        self.methods: list[tuple[str, MethodDescriptorProto, str]] = []
        """Service, method, comment."""
        for file in files:
            about = {tuple(one.path): _paragraphs(one.leading_comments) for one in file.source_code_info.location}
            prefix = f".{file.package}."
            for index, message in enumerate(file.message_type):
                parts = [about.get((4, index, 2, number), "") for number in range(len(message.field))]
                self.types[prefix + message.name] = Named(message, about.get((4, index), ""), parts)
                for inner in message.nested_type:
                    assert inner.options.map_entry, f"{inner.name}: messages stand at the top level"
                    self.maps[f"{prefix}{message.name}.{inner.name}"] = inner.field[1]
            for index, enum in enumerate(file.enum_type):
                parts = [about.get((5, index, 2, number), "") for number in range(len(enum.value))]
                self.types[prefix + enum.name] = Named(enum, about.get((5, index), ""), parts)
            for index, service in enumerate(file.service):
                for number, method in enumerate(service.method):
                    self.methods.append((service.name, method, about.get((6, index, 2, number), "")))

    def fields(self, message: str) -> Iterator[tuple[FieldDescriptorProto, str]]:
        """The fields of a message, and their comments."""
        named = self.types[message]
        assert isinstance(named.proto, DescriptorProto)
        return zip(named.proto.field, named.parts, strict=True)


class Builder:
    """Collects the schemas that paths refer to."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self.schemas: dict[str, Json] = {"Status": STATUS}

    def document(self) -> Json:
        """All of it."""
        paths: dict[str, Json] = {}
        for service, method, comment in self._contract.methods:
            rule = method.options.Extensions[annotations_pb2.http]
            for number, binding in enumerate([rule, *rule.additional_bindings]):
                if verb := binding.WhichOneof("pattern"):
                    operation = self._operation(service, method, comment, binding)
                    operation["operationId"] += verb.capitalize() if number else ""
                    paths.setdefault(getattr(binding, verb), {})[verb] = operation
        return {
            "openapi": "3.1.0",
            "info": {
                "title": "Triptych",
                "version": "v1",
                "description": "Diffusion models as services, through the proxy of `deploy/envoy`.",
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "servers": [{"url": "http://127.0.0.1:8080"}],
            "security": [{}, {"token": []}],
            "paths": paths,
            "components": {
                "schemas": dict(sorted(self.schemas.items())),
                "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            },
        }

    def _operation(self, service: str, method: MethodDescriptorProto, comment: str, rule: http_pb2.HttpRule) -> Json:
        in_path = re.findall(r"\{(\w+)\}", getattr(rule, str(rule.WhichOneof("pattern"))))
        fields = list(self._contract.fields(method.input_type))
        parameters = [
            {"name": field.name, "in": "path", "required": True, "description": about, "schema": self._field(field)}
            for name in in_path
            for field, about in fields
            if field.name == name
        ]
        left = [(field, about) for field, about in fields if field.name not in in_path]
        operation: Json = {"operationId": method.name, "tags": [service], "description": comment}
        if rule.body == "*":
            operation["requestBody"] = _json(self._object(left), required=True)
        else:
            parameters += [
                {"name": field.name, "in": "query", "description": about, "schema": self._field(field)}
                for field, about in left
                if field.name != rule.body
            ]
            if rule.body:
                (about,) = [about for field, about in left if field.name == rule.body]
                binary: Json = {"application/octet-stream": {}}
                operation["requestBody"] = {"description": about, "required": True, "content": binary}
        if parameters:
            operation["parameters"] = parameters
        operation["responses"] = {"200": self._answer(method), "default": _json(_ref("Status"), "The error.")}
        return operation

    def _answer(self, method: MethodDescriptorProto) -> Json:
        if method.output_type == HTTP_BODY:
            return {"description": "The file's bytes, with its media type.", "content": {"*/*": {}}}
        schema = self._refer(method.output_type)
        if not method.server_streaming:
            return _json(schema, self._contract.types[method.output_type].comment)
        content: Json = {"application/json": {"schema": schema}, "text/event-stream": {"schema": {"type": "string"}}}
        return {"description": STREAM, "content": content}

    def _refer(self, name: str) -> Json:
        """A reference to a schema, which is made where it isn't yet."""
        short = name.removeprefix(PACKAGE)
        if short not in self.schemas:
            self.schemas[short] = {}  # a message may hold itself
            named = self._contract.types[name]
            if isinstance(named.proto, EnumDescriptorProto):
                values = [value.name for value in named.proto.value]
                meanings = [f"* {value}: {about}" for value, about in zip(values, named.parts, strict=True)]
                about = "\n\n".join([named.comment, "\n".join(meanings)])
                self.schemas[short] = {"type": "string", "description": about, "enum": values}
            else:
                self.schemas[short] = {"description": named.comment, **self._object(list(self._contract.fields(name)))}
        return _ref(short)

    def _object(self, fields: Sequence[tuple[FieldDescriptorProto, str]]) -> Json:
        found: Json = {"type": "object", "properties": {f.name: self._field(f, about) for f, about in fields}}
        if required := [f.name for f, _about in fields if f.options.Extensions[rules_pb2.required]]:
            found["required"] = required
        return found

    def _field(self, field: FieldDescriptorProto, about: str = "") -> Json:
        if field.type_name in self._contract.maps:
            values = self._field(self._contract.maps[field.type_name])
            return {"type": "object", "additionalProperties": values, "description": about}
        if field.type_name in WELL_KNOWN:
            schema = WELL_KNOWN[field.type_name]
        elif field.type_name:
            schema = self._refer(field.type_name)
        else:
            schema = SCALARS[field.type]
        if field.label == FieldDescriptorProto.LABEL_REPEATED:
            schema = {"type": "array", "items": schema}
        return {**schema, "description": about} if about else dict(schema)


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: Json, about: str = "", **more: Any) -> Json:
    described = {"description": about} if about else {}
    return {**described, "content": {"application/json": {"schema": schema}}, **more}


def _paragraphs(comment: str) -> str:
    """A comment without its line breaks, but with its paragraphs."""
    return "\n\n".join(" ".join(part.split()) for part in comment.strip().split("\n\n"))


def make() -> str:
    """The document. Reads the protos."""
    protos = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "protos/triptych/v1").glob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "set"
        flags = ["-Iprotos", "-Ithird_party", "--include_source_info", f"--descriptor_set_out={made}"]
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *flags, *protos], check=True, cwd=ROOT, timeout=60)
        files = FileDescriptorSet.FromString(made.read_bytes()).file
    return json.dumps(Builder(Contract(files)).document(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (ROOT / "docs/openapi.json").write_text(make())
