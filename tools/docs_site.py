"""Hook of mkdocs: pages that are made from the code or lie outside docs/, and the links between them.

`make docs` builds the site. This module adds three things to the pages of docs/:

- README, ARCHITECTURE, CONTRIBUTING and CHANGELOG become pages of the site (`PAGES`).
- Text made from the code replaces a comment `<!-- generated: NAME -->`: commands from click, keys of a configuration
  from the pydantic schema.
- A relative link works on GitHub and in the site: a link to a file outside docs/ leads to the page made of that file,
  or to a copy of it below `source/`.
"""

from __future__ import annotations

import ast
import inspect
import posixpath
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import yaml

import featurecache.cli
import fusion_train.cli
from fusion_train.config import Config, Section
from fusion_train.presets import load_config
from fusion_train.prompts.prompt import PromptFormat

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "internals/architecture.md",
    "CONTRIBUTING.md": "internals/contributing.md",
    "CHANGELOG.md": "reference/changelog.md",
}
"""File of the repository -> page of the site."""
SOURCES = "source"
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
FENCE = re.compile(r"^\s*(```|~~~)")
GENERATED = re.compile(r"<!-- generated: (\w+) -->")
EXAMPLE = re.compile(r"(?:Example: )?(?:fcache |fusion-train |python tools/)")
"""How the examples in the help of a command begin."""


# What mkdocs calls.


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of files outside docs/, and copies of the other files that pages link to."""
    from mkdocs.structure.files import File

    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    sources = sorted({name for file in files.documentation_pages() for name in _linked_sources(file)})
    for name in sources:
        files.append(File.generated(config, f"{SOURCES}/{name}", content=(ROOT / name).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Replace generated parts, then turn links of the repository into links of the site."""
    markdown = GENERATED.sub(lambda match: GENERATORS[match[1]](), markdown)
    return site_links(markdown, page.file.src_uri)


# Links.


def origin_of(page: str) -> str:
    """The file of the repository that a page of the site is made from."""
    return {page: name for name, page in PAGES.items()}.get(page, f"docs/{page}")


def site_links(markdown: str, page: str) -> str:
    """The same text with links relative to the page in the site; code blocks stay as they are."""

    def place(match: re.Match[str]) -> str:
        name = _repository_file(match[2], page)
        if name is None:
            return match[0]
        target = posixpath.relpath(_site_file(name), posixpath.dirname(page) or ".")
        return f"{match[1]}{target}{match[3] or ''}{match[4]}"

    return "\n".join(line if code else LINK.sub(place, line) for line, code in _lines(markdown))


def _linked_sources(file: Any) -> Iterator[str]:
    for line, code in _lines(file.content_string):
        for match in () if code else LINK.finditer(line):
            name = _repository_file(match[2], file.src_uri)
            if name is not None and _site_file(name).startswith(f"{SOURCES}/"):
                yield name


def _repository_file(link: str, page: str) -> str | None:
    """The file of the repository that a relative link leads to, or None."""
    if "://" in link or link.startswith(("mailto:", "/")):
        return None
    name = posixpath.normpath(posixpath.join(posixpath.dirname(origin_of(page)), link))
    return name if (ROOT / name).is_file() else None


def _site_file(name: str) -> str:
    return PAGES.get(name) or (name.removeprefix("docs/") if name.startswith("docs/") else f"{SOURCES}/{name}")


def _lines(markdown: str) -> Iterator[tuple[str, bool]]:
    """Every line, and whether it belongs to a fenced code block."""
    fenced = False
    for line in markdown.split("\n"):
        fence = bool(FENCE.match(line))
        yield line, fenced or fence
        fenced ^= fence


# Commands.


def programs() -> dict[str, click.Command]:
    """The command lines of the project: what a user types -> the click command."""
    sys.path.insert(0, str(ROOT / "tools"))
    import export_e2e
    import export_runtimes

    return {
        "fcache": featurecache.cli.main,
        "fusion-train": fusion_train.cli.main,
        "python tools/export_e2e.py": export_e2e.main,
        "python tools/export_runtimes.py": export_runtimes.main,
    }


def commands_page() -> str:
    parts: list[str] = []
    for program, command in programs().items():
        context = click.Context(command, info_name=program, **command.context_settings)
        parts += [f"## {program}", *_command(context)]
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                assert child is not None
                parts += [f"### {program} {name}", *_command(click.Context(child, context, name))]
    return "\n\n".join(parts)


def _command(context: click.Context) -> Iterator[str]:
    """Help, usage, options of one command, as Markdown."""
    command = context.command
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```text\n{context.command_path} {usage}\n```"
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(command.help or "").replace("\b\n", "")):
        if EXAMPLE.match(paragraph):
            lines = [line.strip() for line in paragraph.removeprefix("Example: ").splitlines()]
            yield "```sh\n" + "\n".join(line if EXAMPLE.match(line) else f"    {line}" for line in lines) + "\n```"
        elif "\n    " in paragraph:
            yield f"```text\n{paragraph}\n```"
        else:
            yield _inline(paragraph)
    options = [parameter for parameter in command.get_params(context) if isinstance(parameter, click.Option)]
    rows = [record for option in options if (record := option.get_help_record(context))]
    yield "\n".join(
        ["| option | meaning |", "|---|---|", *(f"| {_code(name)} | {_inline(text)} |" for name, text in rows)]
    )


# Configuration.


def configuration_page() -> str:
    return "\n\n".join(_section("", Config, load_config()))


def _section(prefix: str, section: type[Any], values: Any) -> Iterator[str]:
    """One table of the keys of a section, then the sections inside it."""
    schema = section.model_json_schema()
    rows, inner = [], []
    for name, field in section.model_fields.items():
        value = getattr(values, name)
        if isinstance(value, Section):
            inner.append((f"{prefix}{name}", type(value), value))
            continue
        meaning = field.description or (_prompt_meanings().get(name) if prefix == "prompt." else None)
        kind = _kind(schema["properties"][name], schema.get("$defs", {}))
        rows.append(f"| `{prefix}{name}` | {kind} | {_value(value)} | {_inline(meaning or '')} |")
    title = prefix.rstrip(".") or "The run"
    yield f"## {title}" if title == "The run" else f"## `{title}`"
    if prefix and section.__doc__:
        yield inspect.cleandoc(section.__doc__)
    if rows:
        yield "\n".join(["| key | values | default | meaning |", "|---|---|---|---|", *rows])
    for name, kind, value in inner:
        yield from _section(f"{name}.", kind, value)


def _kind(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """The values that a key takes, in words."""
    if "$ref" in schema:
        return _kind(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(part, definitions) for part in schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "prefixItems" in schema:
        return f"list of {len(schema['prefixItems'])} numbers"
    kind = schema.get("type")
    if kind == "array":
        return f"list: {_kind(schema.get('items', {}), definitions)}"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"mapping of text to {_kind(values, definitions)}" if isinstance(values, Mapping) else "mapping"
    words = {"string": "text", "boolean": "`true`, `false`", "null": "`null`", None: "any value"}
    limits = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
    bounds = [f"{sign} {schema[key]:g}" for key, sign in limits if key in schema]
    return " ".join([words.get(kind, str(kind)), ", ".join(bounds)]).strip()


def _value(value: Any) -> str:
    """A value as YAML has it."""
    if isinstance(value, str):
        return _code(value) if value else "empty"
    plain = list(value) if isinstance(value, tuple) else value
    return _code(yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("...\n").strip())


def _prompt_meanings() -> dict[str, str]:
    """The texts below the fields of `PromptFormat`, which `prompt` of a configuration fills."""
    return attribute_docstrings(PromptFormat)


def attribute_docstrings(kind: type[Any]) -> dict[str, str]:
    """Name of a field -> the text that stands below it in the class."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    texts: dict[str, str] = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            texts[ast.unparse(field.target)] = inspect.cleandoc(str(text.value.value))
    return texts


# Markdown.


def _inline(text: str) -> str:
    """A text in one line of a table or paragraph; what Markdown would act on stays as it is."""
    text = " ".join(text.split())
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return re.sub(r"([*_<>\[\]|`])", r"\\\1", text)
    plain = [re.sub(r"([*_<>\[\]|])", r"\\\1", part) for part in parts[::2]]
    code = [_code(part) for part in parts[1::2]]
    return "".join(a + b for a, b in zip(plain, [*code, ""], strict=True))


def _code(text: str) -> str:
    """A text as inline code, also inside a table."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "&#124;")
    return f"<code>{escaped.replace('*', '&#42;').replace('_', '&#95;').replace('[', '&#91;')}</code>"


GENERATORS: dict[str, Callable[[], str]] = {"commands": commands_page, "configuration": configuration_page}
