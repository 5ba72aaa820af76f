"""Random tokenizer.json files, of all parts that the package reads."""

import random

LETTERS = " abcABC019.,'!?-_<>é日▁\u0301İß\n\t"
NAMES = ("<s>", "</s>", "<|im_end|>", "a b", "[MASK]", " x", "é", "AB", "<s", "İ")
BEHAVIORS = ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
PATTERNS = (
    r"\s+", r"\p{L}+", "[0-9]", r"\w", r"(?i:'s|a)| ?\p{N}{1,3}", " ", r"a|b|\p{Lu}", r"\p{P}",
    r"[^\s\p{L}]+[\r\n]*|\s+(?!\S)|\s+", "x*", "^a|b$",
)  # fmt: skip


class Maker:
    """Makes the parts of a random tokenizer.json, and texts for it."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def text(self, longest, letters=LETTERS):
        count = self.random.randint(1, longest)
        return "".join(self.random.choice(letters) for _ in range(count))

    def flag(self):
        return self.random.random() < 0.5

    def pattern(self):
        if self.flag():
            return {"String": self.text(2)}
        return {"Regex": self.random.choice(PATTERNS)}

    def several(self, make, depth):
        return [make(depth + 1) for _ in range(self.random.randint(0, 3))] if depth < 2 else []

    def normalizer(self, depth=0):
        kinds = {
            **dict.fromkeys(("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"), dict),
            "Prepend": lambda: {"prepend": self.random.choice("▁x")},
            "Replace": lambda: {
                "pattern": self.pattern(),
                "content": self.random.choice(["▁", "y"]),
            },
            "Strip": lambda: {"strip_left": self.flag(), "strip_right": self.flag()},
            "BertNormalizer": lambda: {
                "clean_text": self.flag(),
                "handle_chinese_chars": self.flag(),
                "strip_accents": self.random.choice([None, True, False]),
                "lowercase": self.flag(),
            },
            "Sequence": lambda: {"normalizers": self.several(self.normalizer, depth)},
        }
        kind = self.random.choice(list(kinds))
        return {"type": kind} | kinds[kind]()

    def metaspace(self):
        scheme = self.random.choice(["always", "first", "never"])
        return {"replacement": "▁", "prepend_scheme": scheme, "split": self.flag()}

    def pre_tokenizer(self, depth=0):
        behavior = self.random.choice(BEHAVIORS)
        kinds = {
            **dict.fromkeys(("Whitespace", "WhitespaceSplit", "BertPreTokenizer"), dict),
            "ByteLevel": lambda: {
                "add_prefix_space": self.flag(), "trim_offsets": True, "use_regex": self.flag()
            },
            "Split": lambda: {
                "pattern": self.pattern(), "behavior": behavior, "invert": self.flag()
            },
            "Metaspace": self.metaspace,
            "Digits": lambda: {"individual_digits": self.flag()},
            "Punctuation": lambda: {"behavior": behavior},
            "CharDelimiterSplit": lambda: {"delimiter": self.random.choice("a -")},
            "Sequence": lambda: {"pretokenizers": self.several(self.pre_tokenizer, depth)},
        }  # fmt: skip
        kind = self.random.choice(list(kinds))
        return {"type": kind} | kinds[kind]()

    def decoder(self):
        strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
        space = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
        return self.random.choice(
            [
                None,
                space,
                {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                 "use_regex": True},
                {"type": "ByteFallback"},
                {"type": "Metaspace"} | self.metaspace(),
                {"type": "WordPiece", "prefix": "##", "cleanup": self.flag()},
                {"type": "Sequence", "decoders": [space, {"type": "ByteFallback"},
                 {"type": "Fuse"}, *(strip if self.flag() else [])]},
            ]
        )  # fmt: skip

    def word_piece(self):
        ids = {"[UNK]": 0}
        for _ in range(60):
            ids.setdefault(self.random.choice(["", "##"]) + self.text(3, "abcxé日19.,'"), len(ids))
        longest = self.random.choice([5, 100])
        return {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": longest, "vocab": ids}  # fmt: skip

    def byte_pairs(self):
        letters = self.random.sample("abcABC019.,'é日▁ĠĊ x\u0301ß", self.random.randint(8, 20))
        ids = {letter: i for i, letter in enumerate(letters)}
        fallback = self.random.random() < 0.4
        for byte in range(256 if fallback else 0):
            if self.random.random() < 0.999:
                ids[f"<0x{byte:02X}>"] = len(ids)
        prefix = self.random.choice(["", "", "##"])
        for letter in letters if prefix else ():
            ids.setdefault(prefix + letter, len(ids))
        merges = []
        for _ in range(40):
            pieces = [piece for piece in ids if not piece.startswith("<")]
            a, b = self.random.choice(pieces), self.random.choice(pieces)
            joined = a + b.removeprefix(prefix)
            if b.startswith(prefix) and len(joined) < 12 and [a, b] not in merges:
                ids.setdefault(joined, len(ids))
                merges.append([a, b])
        unknown = "<unk>" if self.flag() else None
        ids |= {unknown: len(ids)} if unknown else {}
        return {"type": "BPE", "dropout": None, "unk_token": unknown, "fuse_unk": self.flag(),
                "continuing_subword_prefix": prefix or None, "end_of_word_suffix": None,
                "byte_fallback": fallback, "ignore_merges": self.flag(), "vocab": ids,
                "merges": merges}  # fmt: skip

    def added(self, ids):
        tokens, count = [], max(ids.values()) + 1
        for name in self.random.sample(NAMES, self.random.randint(0, 4)):
            flags = ("single_word", "lstrip", "rstrip", "special")
            token = {"id": ids.get(name, count), "content": name, "normalized": False}
            tokens.append(token | {flag: self.flag() for flag in flags})
            count += name not in ids
        return sorted(tokens, key=lambda token: token["id"])

    def post_processor(self, added):
        if not added or self.flag():
            return None
        first, last = [added[0]["content"], added[0]["id"]], [added[-1]["content"], added[-1]["id"]]
        kind = self.random.choice(["BertProcessing", "RobertaProcessing", "TemplateProcessing"])
        if kind != "TemplateProcessing":
            more = {"trim_offsets": True, "add_prefix_space": False} if kind[0] == "R" else {}
            return {"type": kind, "sep": first, "cls": last} | more
        parts = [{"SpecialToken": {"id": first[0], "type_id": i}} for i in (0, 1)]
        texts = [{"Sequence": {"id": "AB"[i], "type_id": i}} for i in (0, 1)]
        return {
            "type": kind,
            "single": [parts[0], texts[0], parts[0]],
            "pair": [parts[0], texts[0], parts[1], texts[1]],
            "special_tokens": {first[0]: {"id": first[0], "ids": [first[1]], "tokens": [first[0]]}},
        }

    def tokenizer(self):
        """The contents of a tokenizer.json."""
        model = self.word_piece() if self.random.random() < 0.3 else self.byte_pairs()
        added = self.added(model["vocab"])
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": self.normalizer() if self.flag() else None,
            "pre_tokenizer": self.pre_tokenizer() if self.random.random() < 0.7 else None,
            "post_processor": self.post_processor(added),
            "decoder": self.decoder(),
            "model": model,
        }

    def sentence(self, added):
        """A text with some of the added tokens' names."""
        names = [token["content"] for token in added]
        count = self.random.randint(0, 5)
        return "".join(
            self.random.choice([self.text(4), self.text(12), *names]) for _ in range(count)
        )
