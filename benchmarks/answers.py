"""Answers to grade: many samples of few golds, as a stage of sampling makes them."""

import numpy as np

WRONG = 0.5  # share of answers that are of another gold of the same kind


def number(rng: np.random.Generator) -> tuple[str, ...]:
    """An integer or a fraction, spelled as a program would."""
    a, b = int(rng.integers(-5000, 5000)), int(rng.integers(2, 40))
    return (str(a), f"{a}.0", f"{a}") if rng.random() < 0.6 else (f"{a}/{b}", f"{2 * a}/{2 * b}")


def latex(rng: np.random.Generator) -> tuple[str, ...]:
    """One value in LaTeX, in several spellings."""
    a, b, c = (int(value) for value in rng.integers(2, 30, 3))
    kinds = [
        (rf"\frac{{{a}}}{{{a + b}}}", rf"\dfrac{{{2 * a}}}{{{2 * (a + b)}}}", rf"{a}/({a}+{b})"),
        (rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{a * a * b}}}", rf"\sqrt{{{b}}}\cdot {a}"),
        (rf"\frac{{{a}\pi}}{{{b}}}", rf"{a}\pi/{b}", rf"\pi\cdot\frac{{{a}}}{{{b}}}"),
        (rf"x^2 - {a + b}x + {a * b}", rf"(x-{a})(x-{b})", rf"{a * b} + x^2 - {a + b}x"),
        (rf"\left({a}, \frac{{{b}}}{{{c}}}\right)", rf"({a},\frac{{{b}}}{{{c}}})", rf"({a}, {b}/{c})"),
        (rf"[-{a}, {b})", rf"\left[-{a},{b}\right)"),
        (rf"\{{{a}, {a + b}, {a + b + c}\}}", rf"\left\{{{a + b}, {a}, {a + b + c}\right\}}"),
        (rf"2^{{{a}}} - {b}", rf"-{b} + 2^{{{a}}}"),
    ]
    return kinds[int(rng.integers(len(kinds)))]


def pairs(kind: str, golds: int, samples: int, seed: int) -> list[tuple[str, str]]:
    """(response, gold) of `samples` answers to each of `golds` golds, half of them wrong. kind: "number", "latex"."""
    rng = np.random.default_rng(seed)
    draw = {"number": number, "latex": latex}[kind]
    values = [draw(rng) for _ in range(golds)]
    found = []
    for spellings in values:
        for _ in range(samples):
            said = draw(rng) if rng.random() < WRONG else spellings
            found.append((f"So the answer is $\\boxed{{{rng.choice(said)}}}$.", spellings[0]))
    return found
