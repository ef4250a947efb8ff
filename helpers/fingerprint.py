"""Digests of settings, of code and of files: they show whether a stored result is still valid. Imports no torch."""

import ast
import hashlib
import json


def key(settings):
    """Twelve hex digits that change whenever a setting does."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def file_digest(path):
    """SHA-256 of a file's bytes, 64 hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def code_without_words(source):
    """Python source without comments and docstrings, in one layout: what it computes, not how it is explained.

    The layout of a few statements differs between versions of Python; that of `code_structure` does not.
    """
    return ast.unparse(tree_without_words(source))


def code_structure(source):
    """What `code_without_words` keeps, as nested lists for `key` that are the same in all versions of Python."""

    def plain(node):
        if isinstance(node, list):
            return [plain(part) for part in node]
        if not isinstance(node, ast.AST):
            return repr(node)
        if isinstance(node, ast.JoinedStr):  # Python 3.12 may end a format with an empty text
            node.values = [part for part in node.values if getattr(part, "value", None) != ""]
        fields = [(name, plain(value)) for name, value in ast.iter_fields(node) if value not in (None, [])]
        return [type(node).__name__, *fields]  # newer versions have more fields, empty where they are not used

    return plain(tree_without_words(source))


def tree_without_words(source):
    """The syntax tree of Python source without its docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree
