"""The sandbox that chat templates run in: Jinja's immutable one, set up as transformers does, with bounds.

A template comes with a model that somebody else made. It can neither reach Python nor change what it is given, and its
time and the length of what it makes are bounded: each turn of a loop and each call of a macro looks at the clock, and
whatever makes a long text of a short one is looked at first. What it writes is traced (traced.py).
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportMissingParameterType=false

import functools
import json
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any, ClassVar, cast

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from jobs.transformer.chat.bounds import (
    MOST_CHARACTERS,
    check_length,
    check_numbers,
    check_use,
    check_widths,
    checked,
    count_anew,
)
from jobs.transformer.chat.conversation import ChatTemplateError
from jobs.transformer.chat.traced import Traced, joined, rewritten, traced

MOST_SECONDS = 5.0
"""Of one rendering."""
_FOLLOWED = ("trim", "string", "default", "d", "safe", "tojson", "replace", "first", "last")
"""Filters that keep account of origins: what they have of the template's own is."""
_deadline: ContextVar[float] = ContextVar("deadline")
_blocks: ContextVar[list[int]] = ContextVar("blocks")


def compiled(source: str) -> jinja2.Template:
    """Raises: ChatTemplateError."""
    if len(source) > MOST_CHARACTERS:
        raise ChatTemplateError("is too long")
    _deadline.set(time.monotonic() + MOST_SECONDS)
    count_anew()
    try:
        return _environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ChatTemplateError(f"is no Jinja template (line {error.lineno}: {error.message})") from error
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError, SyntaxError,
            MemoryError) as error:
        raise ChatTemplateError(f"cannot be compiled ({error or type(error).__name__})") from error


def rendered(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """What a template writes, traced where the variables are. Raises: ChatTemplateError."""
    _deadline.set(time.monotonic() + MOST_SECONDS)
    _blocks.set([0])
    count_anew()
    pieces: list[str] = []
    size = 0
    try:
        for piece in template.root_render_func(template.new_context(dict(variables))):
            pieces.append(piece)
            size += len(piece)
            if size > MOST_CHARACTERS:
                raise SecurityError(f"it writes more than {MOST_CHARACTERS:,} characters")
    except SecurityError as error:
        raise ChatTemplateError(f"does what no chat template may: {error.message}") from error
    except TemplateError as error:
        raise ChatTemplateError(f"says: {error.message}") from error
    except RecursionError as error:
        raise ChatTemplateError("does what no chat template may: it calls itself without an end") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ChatTemplateError(f"fails ({type(error).__name__}: {error})") from error
    return joined(pieces)


@functools.cache
def _environment() -> "_Environment":
    made = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols],
                        finalize=checked)
    filters, known = cast("dict[str, Any]", made.filters), cast("dict[str, Any]", made.globals)
    filters |= {name: _bounded(name, make) for name, make in (filters | {"tojson": _tojson}).items()}
    filters |= {"join": _join, "replace": _bounded("replace", _replace)}
    del known["lipsum"]
    known |= {"raise_exception": _raise, "strftime_now": _strftime_now, "dict": _Dict(), "namespace": _Namespace}
    return made


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "*", "**", "%"])
    concat = staticmethod(joined)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for node in list(tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block))):
            look = nodes.Call(nodes.EnvironmentAttribute("look_at_clock"), [], [], None, None)
            node.body.insert(0, nodes.ExprStmt(look, lineno=node.lineno))
        _joining(tree)
        tree.set_environment(self)
        return tree

    @staticmethod
    def look_at_clock() -> None:
        if time.monotonic() > _deadline.get():
            raise SecurityError(f"it runs for more than {MOST_SECONDS:g} seconds")

    @staticmethod
    def join_texts(*parts: object) -> str:
        """`~`."""
        texts = [part if isinstance(part, str) else str(checked(part)) for part in parts]
        check_length(sum(map(len, texts)))
        return joined(texts)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(side) if isinstance(side, str | list | tuple) else None for side in (left, right)]
        if operator == "+":
            check_length(sum(size or 0 for size in sizes))
        elif operator == "%" and isinstance(left, str):
            check_widths(left)
        elif sizes != [None, None]:
            number = right if sizes[1] is None else left
            check_length((sizes[0] or 0) + (sizes[1] or 0), number if isinstance(number, int) else 1)
        else:
            check_numbers(*(side for side in (left, right) if operator == "**"))
            check_numbers(*(side for side in (left, right) if abs(side) > 1 << 62))
        found = super().call_binop(context, operator, left, right)
        return _of(found, (left, right)) if operator == "%" else found

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def bounded(*args: Any, **kwargs: Any) -> str:
            check_use("format", value.__self__, args, kwargs)
            return _of(wrapped(*args, **kwargs), (value.__self__, args, kwargs))

        return bounded

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 (as Jinja's own)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            name = __obj.__name__
            check_use(name, owner, args, kwargs)
            if name == "join":
                return _join_by(owner, *args)
            if name == "replace":
                return traced(owner).replace(*args)
            return _of(super().call(__context, __obj, *args, **kwargs), (owner, args, kwargs))
        return super().call(__context, __obj, *args, **kwargs)


def _joining(tree: nodes.Node) -> None:
    """`~` as a call, whose result's length is looked at and which keeps account of origins."""
    for field, value in tree.iter_fields():
        if isinstance(value, nodes.Node):
            setattr(tree, field, _as_call(value))
        elif isinstance(value, list):
            setattr(tree, field, [_as_call(each) if isinstance(each, nodes.Node) else each for each in value])


def _as_call(node: nodes.Node) -> nodes.Node:
    _joining(node)
    if isinstance(node, nodes.Concat):
        return nodes.Call(nodes.EnvironmentAttribute("join_texts"), node.nodes, [], None, None, lineno=node.lineno)
    return node


class _Generation(Extension):
    """`{% generation %}`: what an assistant says, as the template itself marks it."""

    tags: ClassVar[set[str]] = {"generation"}  # pyright: ignore[reportIncompatibleVariableOverride]

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("marked"), [], [], body).set_lineno(line)

    @staticmethod
    def marked(caller: Callable[[], str]) -> str:
        said = caller()
        count = _blocks.get()
        count[0] += 1
        return traced(said).in_block(count[0])


# ── what transformers gives a template ──
def _raise(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(value: object, ensure_ascii: bool = False, indent: int | str | None = None,
            separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    checked(value)
    if isinstance(indent, str):
        check_length(len(indent), 1000)
    return rewritten(json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                                sort_keys=sort_keys), value)


class _Dict:
    """`dict`, without what else it has."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class _Namespace(Namespace):
    """A namespace that keeps no name of Python's own."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # as Jinja's: `self` may be one of the names
        self, given = args[0], dict(*args[1:], **kwargs)
        for name in given:
            _check_name(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"it keeps {name!r} in a namespace")


# ── bounds ──
def _bounded(name: str, make: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(make)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        values = args[1:] if hasattr(make, "jinja_pass_arg") else args
        owner = values[0] if values and isinstance(values[0], str) else ""
        check_use(name, owner, values[1:], kwargs)
        given = (*map(checked, values), kwargs)
        return _of(make(*args, **kwargs), given, exact=name in _FOLLOWED)

    return bounded


def _of(made: Any, given: tuple[Any, ...], *, exact: bool = False) -> Any:
    """What was made of some values: of their messages, where it is not known in detail. exact: whether what it has
    of the template's own is."""
    if not isinstance(made, str):
        return made
    known = isinstance(made, Traced) and (exact or all(run.source is not None for run in made.runs))
    return made if known else rewritten("".join([made]), list(given))


def _replace(value: object, old: object, new: object, count: int | None = None) -> str:
    """The filter `replace`."""
    return traced(str(value)).replace(str(old), str(new), -1 if count is None else count)


@jinja2.pass_eval_context
def _join(evaluated: Any, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    """The filter `join`."""
    if attribute is not None:
        value = map(make_attrgetter(evaluated.environment, attribute), value)
    return _join_by(d, value)


def _join_by(between: str, value: Iterable[Any]) -> str:
    texts = [each if isinstance(each, str) else str(each) for each in value]
    check_length(sum(map(len, texts)) + len(between) * len(texts))
    pieces: list[str] = []
    for number, text in enumerate(texts):
        pieces += [between, text] if number else [text]
    return joined(pieces)
