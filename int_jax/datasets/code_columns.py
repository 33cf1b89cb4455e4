"""Problems of programming in their sets' own columns, as ours: problem, answer (the tests), reference_solution.

HumanEval and its like: prompt, test (a function `check`), entry_point, canonical_solution. MBPP and its like: text or
prompt, code, test_list, and what the tests need, test_setup_code or test_imports.
"""

import ast
import builtins
from typing import Any

from int_jax.domains.code.fences import fenced

HUMANEVAL = ("prompt", "test", "entry_point", "canonical_solution")
MBPP = ("code", "test_list")
USED = (*HUMANEVAL, *MBPP, "text", "test_setup_code", "test_imports", "challenge_test_list")


def translated(columns: dict[str, Any]) -> dict[str, Any]:
    """The columns as ours; as they are where they are in neither form, or in it with code that is no Python."""
    if "problem" in columns:
        return columns
    try:
        if all(isinstance(columns.get(name), str) for name in HUMANEVAL):
            ours = _humaneval(*(columns[name] for name in HUMANEVAL))
        elif isinstance(columns.get("code"), str) and isinstance(columns.get("test_list"), list):
            ours = _mbpp(columns)
        else:
            return columns
    except (SyntaxError, ValueError, RecursionError, MemoryError, TypeError):
        return columns
    return {name: value for name, value in columns.items() if name not in USED} | ours


def _humaneval(prompt: str, test: str, entry: str, solution: str) -> dict[str, str]:
    """The prompt's own imports and helpers stand before the tests, too, which may use them."""
    try:
        tree = ast.parse(prompt)
    except SyntaxError:  # a signature without a docstring
        tree = ast.parse(prompt.rstrip() + "\n    pass")
    # All of the prompt but the function itself, whose stub must not replace the program's.
    helpers = ast.Module([node for node in tree.body if getattr(node, "name", "") != entry], [])
    return {
        "problem": f"Complete the function `{entry}`.\n\n{fenced(prompt)}",
        "answer": _tests(entry, ast.unparse(helpers), test, f"check({entry})"),
        "reference_solution": fenced(prompt.rstrip("\n") + "\n" + solution),
    }


def _mbpp(columns: dict[str, Any]) -> dict[str, str]:
    """The signature is that of the first function of `code` that the tests name: the text seldom gives it."""
    code, tests = columns["code"].replace("\r\n", "\n"), [str(one) for one in columns["test_list"]]
    # "assert f(1) == 2" names f: of several functions in `code` the others are helpers.
    named = {node.id for node in ast.walk(ast.parse("\n".join(tests))) if isinstance(node, ast.Name)}
    functions = [node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
    one = next((node for node in functions if node.name in named), None)
    if one is None:
        raise ValueError("the tests name no function of the code")
    setup = [str(columns.get("test_setup_code") or ""), *map(str, columns.get("test_imports") or [])]
    stub = fenced(f"def {one.name}({ast.unparse(one.args)}):\n    ...")
    return {
        "problem": f"{str(columns.get('text') or columns.get('prompt') or '').strip()}\n\n{stub}".strip(),
        "answer": _tests(one.name, *setup, *tests),
        "reference_solution": fenced(code),
    }


def _tests(entry: str, *parts: str) -> str:
    """A program's own name wins over a builtin one's where the tests declare it."""
    # A program that is to define `sorted`: at the top `global sorted` changes nothing, and says whose it is.
    declared = [f"global {entry}"] * hasattr(builtins, entry)
    return "\n".join(part.strip("\n") for part in (*declared, *parts) if part.strip()) + "\n"
