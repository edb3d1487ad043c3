"""Changing the global names of a source text, and nothing else of it."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


@dataclasses.dataclass(frozen=True, order=True)
class Edit:
    """Bytes of a text to be replaced: from (line, column) to (line, column), lines from 1 and columns from 0."""

    begin: tuple[int, int]
    end: tuple[int, int]
    new: str

    @classmethod
    def of(cls, node: Any, new: str) -> Edit:
        """Replaces an expression."""
        return cls((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset), new)

    @classmethod
    def lines(cls, node: Any) -> Edit:
        """Removes a statement with its lines."""
        return cls((node.lineno, 0), (node.end_lineno + 1, 0), "")


def apply(text: str, edits: Sequence[Edit]) -> str:
    """`text` after the edits, which must not overlap; those within a removed statement go with it."""
    lines = [*text.encode().splitlines(keepends=True), b""]
    kept: list[Edit] = []
    for edit in sorted(edits, key=lambda edit: (edit.begin, (-edit.end[0], -edit.end[1]))):
        if not kept or edit.begin >= kept[-1].end:
            kept.append(edit)
    for edit in reversed(kept):
        (first, from_column), (last, to_column) = edit.begin, edit.end
        joined = lines[first - 1][:from_column] + edit.new.encode() + lines[last - 1][to_column:]
        lines[first - 1 : last] = [joined]
    return b"".join(lines).decode()


def global_edits(
    text: str, tree: ast.Module, called: Mapping[str, str], modules: Mapping[str, Mapping[str, str]]
) -> list[Edit]:
    """What to change so that every global name of a module is called as `called` says.

    Args:
        text: the module's.
        tree: of it.
        called: new names by old ones; names that are not in it stay.
        modules: names that stand for modules, with the new names of what they hold: `plan.cut` becomes what `cut` is
            called.

    Raises:
        ValueError: a module is used otherwise than by an attribute, or a place cannot be found in the text.
    """
    visitor = _Names(text, called, modules)
    visitor.visit(tree)
    return visitor.edits


class _Names(ast.NodeVisitor):
    """Walks the scopes of a module; a name is global where no function around it binds it."""

    def __init__(self, text: str, called: Mapping[str, str], modules: Mapping[str, Mapping[str, str]]) -> None:
        self.source = [line.encode() for line in text.splitlines()]
        self.called, self.modules = called, modules
        self.edits: list[Edit] = []
        self.scopes: list[set[str]] = []  # of the functions around
        self.class_scope: set[str] = set()  # of a class, where its body itself stands

    def visit_Name(self, node: ast.Name) -> None:
        if self._is_local(node.id):
            return
        if node.id in self.modules:
            raise ValueError(f"line {node.lineno} uses the module {node.id} otherwise than by an attribute")
        self._rename(node, node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        value = node.value
        if isinstance(value, ast.Name) and value.id in self.modules and not self._is_local(value.id):
            self.edits.append(Edit.of(node, self.modules[value.id][node.attr]))
        else:
            self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._rename_definition(node)
        for outer in (*node.decorator_list, *node.bases, *node.keywords):
            self.visit(outer)
        before, self.class_scope = self.class_scope, _bound_in(node.body)
        for statement in node.body:
            self.visit(statement)
        self.class_scope = before

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._rename_definition(node)
        # Defaults and annotations belong to the scope around the function.
        for outer in (*node.decorator_list, node.args, *([node.returns] if node.returns else [])):
            self.visit(outer)
        self._inside(_bound_in(node.body) | _parameters(node.args), node.body)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.visit(node.args)
        self._inside(_parameters(node.args), [node.body])

    def visit_ListComp(self, node: Any) -> None:
        bound = {inner.id for part in node.generators for inner in ast.walk(part.target) if isinstance(inner, ast.Name)}
        self.visit(node.generators[0].iter)  # in the scope around
        first, *others = node.generators
        self._inside(bound, [first.target, *first.ifs, *others, *_results(node)])

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp  # noqa: N815

    def _inside(self, bound: set[str], nodes: Sequence[ast.AST]) -> None:
        before, self.class_scope = self.class_scope, set()  # a function does not see the names of its class
        self.scopes.append(bound)
        for node in nodes:
            self.visit(node)
        self.scopes.pop()
        self.class_scope = before

    def _is_local(self, name: str) -> bool:
        return name in self.class_scope or any(name in scope for scope in self.scopes)

    def _rename_definition(self, node: ast.ClassDef | ast.FunctionDef) -> None:
        if self._is_local(node.name) or self.called.get(node.name, node.name) == node.name:
            return
        found = re.match(rb"\s*(?:class|def)\s+", self.source[node.lineno - 1])
        assert found is not None
        begin = (node.lineno, found.end())
        self._replace(
            Edit(begin, (node.lineno, found.end() + len(node.name.encode())), self.called[node.name]), node.name
        )

    def _rename(self, node: ast.Name, name: str) -> None:
        if self.called.get(name, name) != name:
            self._replace(Edit.of(node, self.called[name]), name)

    def _replace(self, edit: Edit, old: str) -> None:
        (line, begin), (_, end) = edit.begin, edit.end
        if self.source[line - 1][begin:end].decode(errors="replace") != old:  # Python 3.11 misplaces names in f-strings
            raise ValueError(f"{old} is not found where it is used, on line {line}: write it outside of an f-string")
        self.edits.append(edit)


def _results(node: Any) -> list[ast.AST]:
    return [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]


def _parameters(arguments: ast.arguments) -> set[str]:
    several = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg)
    return {argument.arg for argument in several if argument is not None}


def _bound_in(body: Sequence[ast.stmt]) -> set[str]:
    """Names that the statements bind in their own scope, that of inner functions and classes aside.

    Imports from the package do not count: they are removed, and their names are then global ones.
    """
    found: set[str] = set()
    waiting: list[ast.AST] = list(body)
    while waiting:
        node = waiting.pop()
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
                continue
            case ast.Lambda() | ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                continue
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                found.add(name)
            case ast.ExceptHandler(name=str(name)):
                found.add(name)
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                found.add(name)
            case ast.Import(names=names):
                found |= {alias.asname or alias.name.split(".")[0] for alias in names}
            case ast.ImportFrom(module=str(module), names=names) if not module.startswith("echo_ska"):
                found |= {alias.asname or alias.name for alias in names}
        waiting.extend(ast.iter_child_nodes(node))
    return found
