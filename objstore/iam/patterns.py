"""Texts of policies: wildcards and variables, compiled once, matched in time that nobody can blow up.

`*` stands for any characters, `?` for one. `${aws:username}` is what the request says of itself, taken
literally: a wildcard in it is a character. `${aws:username, 'nobody'}` has a default; `${*}`, `${?}` and
`${$}` are the characters themselves. A variable of which the request says nothing makes its text match
nothing.

A text is cut at its `*`; the pieces are looked for from left to right, each where it is found first. That is
exact, since a piece has a fixed length, and costs at most length times length.

Source: IAM User Guide, "Variables and tags" and "Resource".
"""

import re
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final, NamedTuple

from objstore.errors import BadArgument

Values = Callable[[str], tuple[str, ...] | None]  # What a request says of a condition key (lower case).
Test = Callable[[str], bool]

TOLD_MAX: Final = 16  # Compiled forms that a text with variables remembers: of one user's requests, mostly.
TOLD_SIZE_MAX: Final = 256  # Characters said of the variables of one: names, not headers of kilobytes.


class Wild(Enum):
    ANY = "*"
    ONE = "?"


class Variable(NamedTuple):
    name: str  # Lower case.
    default: str | None


Token = str | Wild | Variable

_VARIABLE: Final = re.compile(r"\$\{([^{}]*)\}")
_NAMED: Final = re.compile(r"\s*([A-Za-z0-9]+:[A-Za-z0-9/_.-]+)\s*(?:,\s*'([^'{}]*)'\s*)?", re.ASCII)
_LITERALS: Final = frozenset("*?$")


class Text:
    """A compiled text.

    Args:
        wildcards: whether `*` and `?` are.
        variables: whether `${...}` is one: not before version 2012-10-17 of the language.
        fold: whether upper and lower case are the same.

    Raises: BadArgument for a variable that is not shaped like one.
    """

    __slots__ = ("_fold", "_test", "_tests", "_tokens", "variables")

    def __init__(self, text: str, *, wildcards: bool, variables: bool, fold: bool = False) -> None:
        self._tokens = _tokens(text, wildcards=wildcards, variables=variables)
        self._fold = fold
        self.variables = tuple(token.name for token in self._tokens if isinstance(token, Variable))
        self._test: Test | None = None if self.variables else _compiled(self._tokens, fold)
        self._tests: dict[tuple[str, ...], Test] = {}  # By what requests said of the variables.

    def matches(self, value: str, values: Values) -> bool:
        if self._fold:
            value = value.casefold()
        if self._test is not None:
            return self._test(value)
        told = _told(self._tokens, values)
        if told is None:
            return False
        test = self._tests.get(told)
        return test(value) if test is not None else self._with(told)(value)

    def _with(self, told: tuple[str, ...]) -> Test:
        """Compiled with what a request said of the variables; remembered, unless it is long."""
        words = iter(told)
        tokens = [next(words) if isinstance(token, Variable) else token for token in self._tokens]
        test = _compiled(tokens, self._fold)
        if sum(map(len, told)) <= TOLD_SIZE_MAX:
            if len(self._tests) >= TOLD_MAX:
                self._tests.clear()
            self._tests[told] = test
        return test


def _tokens(text: str, *, wildcards: bool, variables: bool) -> tuple[Token, ...]:
    found: list[Token] = []
    at = 0
    if variables:
        for match in _VARIABLE.finditer(text):
            found += _wild(_closed(text[at : match.start()]), wildcards)
            found.append(_variable(match[1]))
            at = match.end()
        _closed(text[at:])
    return tuple(found + _wild(text[at:], wildcards))


def _closed(text: str) -> str:
    if "${" in text:
        raise BadArgument("${ is not followed by }", name="policy", value=text)
    return text


def _wild(text: str, wildcards: bool) -> list[Token]:
    if not wildcards:
        return [text] if text else []
    return [
        Wild.ANY if piece == "*" else Wild.ONE if piece == "?" else piece
        for piece in re.split(r"([*?])", text)
        if piece
    ]


def _variable(inside: str) -> Token:
    if inside in _LITERALS:
        return inside
    match = _NAMED.fullmatch(inside)
    if match is None:
        raise BadArgument(f"${{{inside}}} is no policy variable", name="policy", value=inside)
    return Variable(match[1].lower(), match[2])


def _told(tokens: Sequence[Token], values: Values) -> tuple[str, ...] | None:
    """What the request says of each variable; None if it says nothing of one, or several things."""
    told: list[str] = []
    for token in tokens:
        if isinstance(token, Variable):
            said = values(token.name)
            if said is not None and len(said) == 1:
                told.append(said[0])
            elif not said and token.default is not None:
                told.append(token.default)
            else:
                return None
    return tuple(told)


def _compiled(tokens: Sequence[Token], fold: bool) -> Test:
    """Of tokens without variables."""
    pieces = [_Piece([], fold)]
    for token in tokens:
        if token is Wild.ANY:
            pieces.append(_Piece([], fold))
        else:
            assert not isinstance(token, Variable)
            pieces[-1].tokens.append(token)
    for piece in pieces:
        piece.close()
    if len(pieces) == 1:
        return pieces[0].is_whole
    head, tail = pieces[0], pieces[-1]
    if len(pieces) == 2 and head.literal is not None and not tail.size:
        return head.begins
    return _Glob(head, [piece for piece in pieces[1:-1] if piece.size], tail).matches


class _Piece:
    """What stands between two `*`: characters, and `?` for one each."""

    __slots__ = ("_fold", "_pattern", "literal", "size", "tokens")

    def __init__(self, tokens: list[str | Wild], fold: bool) -> None:
        self.tokens = tokens
        self._fold = fold
        self.size = 0
        self.literal: str | None = ""
        self._pattern = re.compile("")

    def close(self) -> None:
        texts = [token if isinstance(token, str) else "" for token in self.tokens]
        literal = "".join(texts)
        self.literal = literal.casefold() if self._fold else literal
        self.size = len(self.literal) + sum(isinstance(token, Wild) for token in self.tokens)
        if self.size != len(self.literal):
            # Characters and dots, nothing that repeats: a search costs length times length at most.
            self._pattern = re.compile(
                "".join(
                    "." if isinstance(token, Wild) else re.escape(token.casefold() if self._fold else token)
                    for token in self.tokens
                ),
                re.DOTALL,
            )
            self.literal = None

    def is_whole(self, value: str) -> bool:
        return (
            value == self.literal if self.literal is not None else self._pattern.fullmatch(value) is not None
        )

    def begins(self, value: str) -> bool:
        assert self.literal is not None
        return value.startswith(self.literal)

    def stands(self, value: str, at: int) -> bool:
        if self.literal is not None:
            return value.startswith(self.literal, at)
        return self._pattern.match(value, at) is not None

    def find(self, value: str, begin: int, end: int) -> int:
        """Where it is found first within [begin, end); -1: nowhere."""
        if self.literal is not None:
            return value.find(self.literal, begin, end)
        match = self._pattern.search(value, begin, end)
        return -1 if match is None else match.start()


class _Glob:
    __slots__ = ("_head", "_middle", "_tail")

    def __init__(self, head: _Piece, middle: list[_Piece], tail: _Piece) -> None:
        self._head = head
        self._middle = middle
        self._tail = tail

    def matches(self, value: str) -> bool:
        at, end = self._head.size, len(value) - self._tail.size
        if at > end or not self._head.stands(value, 0) or not self._tail.stands(value, end):
            return False
        for piece in self._middle:
            found = piece.find(value, at, end)
            if found < 0:
                return False
            at = found + piece.size
        return True
