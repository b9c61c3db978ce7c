"""Make the quickstart's data out of Python's own standard library: real prose and real code that every machine with Python has.

    python prepare.py DIRECTORY

    text-train.jsonl, text-held-out.jsonl     {"text"}: the language reference, docstrings, and sources without their docstrings
    pairs-train.jsonl, pairs-held-out.jsonl   {"instruction", "output"}: what a function does, as its docstring begins
    model/config.json                         the shape of a small Qwen3; the tokenizer comes beside it

Files are only parsed, never imported. A module is held out as a whole, from the text and from the pairs, and an answer that also
occurs among the training pairs is not held out.
"""

from __future__ import annotations

import ast
import hashlib
import json
import random
import re
import sys
import sysconfig
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

TEXT_BYTES = 4_000_000
HELD_OUT = 0.08
"""Share of the modules."""
HELD_OUT_BYTES, HELD_OUT_PAIRS = 200_000, 250
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "encodings", "__pycache__", "turtledemo"}
MODEL = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 2048,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 1024,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}


def modules() -> Iterator[tuple[str, str, ast.Module]]:
    """(dotted name, source, syntax tree) of the standard library's modules."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if LEFT_OUT & set(place.parts) or place.parts[0].startswith("config-"):
            continue
        try:
            source = path.read_text(encoding="utf-8")
            yield ".".join(place.with_suffix("").parts).removesuffix(".__init__"), source, ast.parse(source)
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue


def held_out(module: str) -> bool:
    return hashlib.sha256(module.encode()).digest()[0] < 256 * HELD_OUT


def documented(module: str, tree: ast.Module) -> Iterator[tuple[str, ast.AST, str]]:
    """(qualified name, node, docstring) of a module, its classes and its functions."""

    def walk(name: str, node: ast.AST) -> Iterator[tuple[str, ast.AST, str]]:
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and (
            text := ast.get_docstring(node)
        ):
            yield name, node, text
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from walk(f"{name}.{child.name}", child)

    yield from walk(module, tree)


def prose(module: str, tree: ast.Module) -> Iterator[str]:
    """The docstrings of a module as one document; the language reference by topic."""
    if module == "pydoc_data.topics":
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict):
                yield from (textwrap.dedent(value) for value in ast.literal_eval(node).values())
    else:
        yield "\n\n\n".join(f"{signature(name, node)}\n\n{text}" for name, node, text in documented(module, tree))


def without_docstrings(source: str) -> str:
    return re.sub(r'(?ms)^\s*r?""".*?"""\s*?\n', "", source)


def signature(name: str, node: ast.AST) -> str:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return f"{name}({ast.unparse(node.args)})"
    return f"{'class' if isinstance(node, ast.ClassDef) else 'module'} {name}"


def pairs(module: str, tree: ast.Module) -> Iterator[dict[str, str]]:
    """One question for each public function whose docstring begins with a sentence of at least four words. The answer says where
    the function is, and then that sentence."""
    for name, node, text in documented(module, tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or any(part.startswith("_") for part in name.split(".")):
            continue
        paragraph = " ".join(text.split("\n\n")[0].split())
        sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z])", paragraph)[0]
        if len(sentence.split()) >= 4 and len(sentence) <= 300 and ">>>" not in sentence:
            answer = f"{node.name}() is a function in the module {module}. {sentence}"
            yield {"instruction": f"What does {signature(name, node)[:160]} do?", "output": answer}


def write(path: Path, rows: Iterable[dict[str, str]]) -> int:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    return len(lines)


def draw(texts: list[str], size: int, seed: int = 0) -> list[str]:
    """Documents in a random order, up to ``size`` characters and without the tiny ones."""
    chosen = []
    for text in random.Random(seed).sample(texts, len(texts)):
        if size > 0 and len(text) > 200:
            chosen.append(text[:size])
            size -= len(text)
    return chosen


def main(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    words: dict[bool, list[str]] = {False: [], True: []}
    sources: list[str] = []
    asked: dict[bool, list[dict[str, str]]] = {False: [], True: []}
    for module, source, tree in modules():
        side = held_out(module)
        words[side] += prose(module, tree)
        asked[side] += pairs(module, tree)
        if not side:
            sources.append(without_docstrings(source))
    known = {pair["output"] for pair in asked[False]}
    unknown = [pair for pair in asked[True] if pair["output"] not in known]
    spoken = draw(words[False], TEXT_BYTES)
    text = spoken + draw(sources, TEXT_BYTES - sum(map(len, spoken)))
    counts = {
        "text-train.jsonl": write(directory / "text-train.jsonl", ({"text": document} for document in text)),
        "text-held-out.jsonl": write(
            directory / "text-held-out.jsonl", ({"text": document} for document in draw(words[True], HELD_OUT_BYTES))
        ),
        "pairs-train.jsonl": write(directory / "pairs-train.jsonl", asked[False]),
        "pairs-held-out.jsonl": write(
            directory / "pairs-held-out.jsonl", random.Random(0).sample(unknown, min(HELD_OUT_PAIRS, len(unknown)))
        ),
    }
    (directory / "model").mkdir(exist_ok=True)
    (directory / "model" / "config.json").write_text(json.dumps(MODEL, indent=1) + "\n")
    for name, number in counts.items():
        print(f"{directory / name}: {number} rows, {(directory / name).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "quickstart"))
