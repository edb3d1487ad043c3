"""Global names are changed and nothing else is."""

from __future__ import annotations

import ast

import pytest

from echo_ska.models.export.names import Edit, apply, global_edits


def renamed(text, called, modules=None):
    return apply(text, global_edits(text, ast.parse(text), called, modules or {}))


def test_uses_and_definitions_are_renamed_and_everything_else_stays():
    text = (
        "# plan is a word here\n"
        "é = 1; plan = é\n"
        "def use(size: plan = plan) -> plan:  # plan\n"
        '    """A plan."""\n'
        "    return plan(size), size.plan, {'plan': plan}, [plan for _ in plan]\n"
        "@plan\n"
        "class plan:\n"
        "    field: plan\n"
    )
    assert renamed(text, {"plan": "plan_2"}) == (
        "# plan is a word here\n"
        "é = 1; plan_2 = é\n"
        "def use(size: plan_2 = plan_2) -> plan_2:  # plan\n"
        '    """A plan."""\n'
        "    return plan_2(size), size.plan, {'plan': plan_2}, [plan_2 for _ in plan_2]\n"
        "@plan_2\n"
        "class plan_2:\n"
        "    field: plan_2\n"
    )


@pytest.mark.parametrize(
    "text",
    [
        "def f(plan): return plan\n",
        "def f(*, plan=1): return [plan for x in plan]\n",
        "def f():\n    for plan in []: plan()\n",
        "def f():\n    with open('') as plan: return lambda: plan\n",
        "f = lambda plan: plan\n",
        "x = [plan for plan in range(3) if plan]\n",
        "x = {plan: plan for plan in []}\n",
        "class A:\n    plan: int = 1\n    other = plan\n",
        "def f():\n    def plan(): return plan\n    return plan()\n",
        "def f():\n    try: pass\n    except E as plan: plan\n",
        "def f(x):\n    match x:\n        case [plan, *_]: return plan\n",
        "def f():\n    import plan\n    return plan\n",
        "def f():\n    if (plan := 1): return plan\n",
    ],
)
def test_local_names_stay(text):
    assert renamed(text, {"plan": "plan_2"}) == text


def test_a_method_sees_the_global_and_not_its_class():
    text = "class A:\n    plan = 1\n    def f(self): return plan\n"
    assert renamed(text, {"plan": "plan_2"}) == "class A:\n    plan = 1\n    def f(self): return plan_2\n"


def test_the_first_iterable_of_a_comprehension_is_outside():
    assert renamed("x = [plan for plan in plan]\n", {"plan": "p"}) == "x = [plan for plan in p]\n"


def test_what_a_module_holds_becomes_a_plain_name():
    assert renamed("x = room.cut(1)\n", {}, {"room": {"cut": "cut_2"}}) == "x = cut_2(1)\n"
    with pytest.raises(ValueError, match="otherwise than by an attribute"):
        renamed("x = room\n", {}, {"room": {}})


def test_edits_within_a_removed_statement_go_with_it():
    text = "a = 1\nfrom x import (\n    y,\n)\nb = 2\n"
    node = ast.parse(text).body[1]
    assert apply(text, [Edit.lines(node), Edit((3, 4), (3, 5), "z")]) == "a = 1\nb = 2\n"
