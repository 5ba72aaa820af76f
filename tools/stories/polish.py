"""The last look over a page: articles, capitals, commas and question marks."""

from __future__ import annotations

import re

_SPACES = re.compile(r" +(?=[ ,.!?\n]|$)")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiouAEIOU])(?!(?:one|once|uni|use|euc)\w*)")
_START = re.compile(r"(^|[.!?] |\n)([a-z])")
_SENTENCE = re.compile(r"[^.!?:]+[.!?:,]*$")
_QUESTION = re.compile(
    r"(?:(?:And|But|Then|So|Oh|Please|Hello|Excuse me),? )?(?:"
    r"(?:Why|Where|Who|Whose|Which|Is|Are|Am|Does|Did|Can|Could|May|Shall|Would|Has|Were|Was)\b|"
    r"Do (?:you|I|we|they)\b|Will (?:you|it|he|she|we)\b|Have (?:you|we|I)\b|"
    r"What\b(?! (?:a|an|you|nice|lovely|is mine)\b)|When (?:will|did|can|is|do)\b|"
    r"How (?:do|does|did|is|are|was|were|can|could|would|often|many|far)\b)",
    re.IGNORECASE,
)
_PAIRS = (("And then, ", "And then "), (" but, ", " but "), ('!".', '!"'), ('?".', '?"'))


def polish(text: str) -> str:
    """Mend what putting a page together from parts leaves behind."""
    text = _SPACES.sub("", text)
    for wrong, right in _PAIRS:
        text = text.replace(wrong, right)
    text = _ARTICLE.sub(r"\1n ", text)
    text = _START.sub(lambda found: found[1] + found[2].upper(), text)
    return "\n".join(map(_with_questions, text.split("\n")))


def _with_questions(paragraph: str) -> str:
    """Give what somebody asks a question mark, and nothing else one."""
    parts = paragraph.split('"')  # speech is every second part
    for i in range(1, len(parts) - 1, 2):
        said, after = parts[i], parts[i + 1]
        sentence = _SENTENCE.search(said)[0].strip()
        if _QUESTION.match(sentence):
            parts[i] = said[:-1] + "?"
        elif said[-1] == "?" and len(sentence.split()) > 3:
            parts[i] = said[:-1] + ("," if re.match(" [a-z]", after) else ".")
        if parts[i][-1] != "?":
            parts[i + 1] = re.sub(r"^ asked\b", " said", after)
    return '"'.join(parts)
