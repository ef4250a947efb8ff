"""Short digests of settings and of code: they show whether a stored result is still valid. Imports no torch."""

import ast
import hashlib
import json


def key(settings):
    """Twelve hex digits that change whenever a setting does."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def code_without_words(source):
    """Python source without comments and docstrings, in one layout: what it computes, not how it is explained."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
