"""The comments of ``protos/dbos.proto``, and the places they are copied to.

`comments_of` reads them out of a descriptor set. The SDK's messages and fields get theirs from
betterproto's generator. It has none for methods: `with_method_docstrings` adds those. The tables
in ``docs/api.md`` are made by `with_tables`, between two lines for each method and record:

    <!-- generated: RegisterAgent -->
    <!-- end of RegisterAgent -->

What stands outside such a pair is written by hand and left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

Comments = Mapping[str, str]
"""By name: ``DBOS``, ``DBOS.GetAgent``, ``Agent``, ``Agent.id``, ``ScheduleTaskRequest.task``."""

_MESSAGES, _SERVICES = 4, 6  # field numbers of FileDescriptorProto
_FIELDS, _NESTED = 2, 3  # of DescriptorProto
_METHODS = 2  # of ServiceDescriptorProto


class UndocumentedError(Exception):
    """Something in the contract has no comment, or the page has no place for it."""


def comments_of(file: FileDescriptorProto) -> dict[str, str]:
    """The comment of every service, method, message and field of a file, without its slashes.

    The descriptor must have been made with source information. Raises `UndocumentedError` for
    what has no comment.
    """
    texts = {
        tuple(location.path): location.leading_comments
        for location in file.source_code_info.location
    }
    comments: dict[str, str] = {}
    for name, path in _names(file):
        lines = texts.get(path, "").strip().split("\n")
        comments[name] = "\n".join(line.removeprefix(" ") for line in lines)
        if not comments[name]:
            raise UndocumentedError(f"{name} has no comment in {file.name}")
    return comments


def _names(file: FileDescriptorProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Everything that has a comment: its name, and its path in the descriptor."""
    for number, service in enumerate(file.service):
        yield service.name, (_SERVICES, number)
        for index, method in enumerate(service.method):
            yield f"{service.name}.{method.name}", (_SERVICES, number, _METHODS, index)
    for number, message in enumerate(file.message_type):
        yield from _names_in(message, message.name, (_MESSAGES, number))


def _names_in(
    message: DescriptorProto, name: str, path: tuple[int, ...]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield name, path
    for index, field in enumerate(message.field):
        yield f"{name}.{field.name}", (*path, _FIELDS, index)
    for index, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from _names_in(nested, f"{name}.{nested.name}", (*path, _NESTED, index))


# -------------------------------------------------------------------- the SDK


def with_method_docstrings(code: str, file: FileDescriptorProto, comments: Comments) -> str:
    """The SDK's code with a docstring in each service's stub and base class and in their methods.

    Raises `UndocumentedError` if a method is not found in the code.
    """
    for service in file.service:
        for method in service.method:
            name = re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower()
            head = re.compile(rf"^    async def {name}\([^)]*\) -> [^:]+:\n", re.MULTILINE)
            docstring = _docstring(comments[f"{service.name}.{method.name}"], indent=" " * 8)
            code, count = head.subn(r"\g<0>" + _literal(docstring), code)
            if count != 2:
                raise UndocumentedError(f"the SDK has {count} methods {name}, not 2")
        head = re.compile(rf"^class {service.name.title()}(?:Stub|Base)\([^)]*\):\n", re.MULTILINE)
        docstring = _docstring(comments[service.name], indent=" " * 4)
        code, count = head.subn(r"\g<0>" + _literal(docstring), code)
        if count != 2:
            raise UndocumentedError(f"the SDK has {count} classes of {service.name}, not 2")
    return code


def _docstring(comment: str, *, indent: str) -> str:
    lines = [f'"""{comment}', '"""'] if "\n" in comment else [f'"""{comment}"""']
    text = "\n".join(lines)
    return "".join(f"{indent}{line}\n" if line else "\n" for line in text.split("\n")) + "\n"


# --------------------------------------------------------------- docs/api.md


def with_tables(page: str, file: FileDescriptorProto, comments: Comments) -> str:
    """The page with everything between its marks made anew.

    Raises `UndocumentedError` if the page has no marks for a method or record.
    """
    for name, text in _sections(file, comments):
        begin, end = f"<!-- generated: {name} -->\n", f"<!-- end of {name} -->"
        marks = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        page, count = marks.subn(_literal(f"{begin}\n{text}\n{end}"), page)
        if count != 1:
            raise UndocumentedError(f"docs/api.md has {count} places for {name}, not 1")
    return page


def _sections(file: FileDescriptorProto, comments: Comments) -> Iterator[tuple[str, str]]:
    """Each method with its request and response, and each message that belongs to no method."""
    records = {message.name: message for message in file.message_type}
    for service in file.service:
        for method in service.method:
            parts = [comments[f"{service.name}.{method.name}"]]
            for type_name in (method.input_type, method.output_type):
                message = records.get(_short(type_name))
                if message is not None:
                    parts += _tables(message, message.name, comments)
            yield method.name, "\n\n".join(parts) + "\n"
    of_methods = {
        _short(name)
        for service in file.service
        for method in service.method
        for name in (method.input_type, method.output_type)
    }
    for name, message in records.items():
        if name not in of_methods:
            yield name, "\n\n".join(_tables(message, name, comments)) + "\n"


def _tables(message: DescriptorProto, name: str, comments: Comments) -> Iterator[str]:
    """A message and the messages inside it, each as a line and a table of its fields."""
    yield f"**`{name}`**: {_cell(comments[name])}"
    if message.field:
        rows = [
            f"| `{field.name}` | {field.number} | {_type(field, message)} "
            f"| {_cell(comments[f'{name}.{field.name}'])} |"
            for field in message.field
        ]
        yield "\n".join(["| field | number | type | meaning |", "|---|---|---|---|", *rows])
    for nested in message.nested_type:
        if not nested.options.map_entry:
            yield from _tables(nested, f"{name}.{nested.name}", comments)


def _cell(comment: str) -> str:
    return " ".join(comment.split()).replace("|", r"\|")


def _type(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    """The field's type as it stands in the .proto file."""
    name = _short(field.type_name)
    for nested in message.nested_type:
        if nested.name == name and nested.options.map_entry:
            key, value = (_type(entry, nested) for entry in nested.field)
            return f"map<{key}, {value}>"
    name = name or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    return f"repeated {name}" if field.label == FieldDescriptorProto.LABEL_REPEATED else name


def _short(type_name: str) -> str:
    return type_name.rpartition(".")[2]


def _literal(text: str) -> str:
    """A text as `re.Pattern.subn` inserts it without change."""
    return text.replace("\\", r"\\")
