"""GGUF files: the same as the package gguf reads, and damaged ones refused in one line."""

import struct

import numpy as np
import pytest
from conftest import parameters
from gguf_files import info, key, packed, string, strings

from llama2np.formats import gguf
from llama2np.formats.checkpoint import CheckpointError
from llama2np.formats.gguf.header import Strings
from llama2np.model.gguf_blocks import Blocks

FILES = """gemma3.Q8_0 gpt2.Q5_1 llama.BF16 llama.F16 llama.Q4_1 llama3_rope.F32 llama_k.IQ4_XS
    llama_k.Q2_K llama_k.Q3_K_M llama_k.Q4_K_M llama_k.Q5_K_M llama_k.TQ1_0 mixtral.Q4_0 phi2.Q8_0
    phi3_longrope.F32 qwen2.Q5_0 qwen3.Q8_0""".split()


@pytest.fixture
def written(tmp_path):
    def write(data):
        (tmp_path / "x.gguf").write_bytes(data)
        return tmp_path / "x.gguf"

    return write


@pytest.mark.parametrize("name", parameters(FILES, FILES[::3]))
def test_a_file_reads_as_the_package_gguf_reads_it(reference, name):
    theirs = pytest.importorskip("gguf")
    path = reference / "gguf" / f"{name}.gguf"
    expected, file = theirs.GGUFReader(path), gguf.read(path)
    fields = {k: f for k, f in expected.fields.items() if not k.startswith("GGUF.")}
    assert list(file.metadata) == list(fields) and file.version == 3
    for name, field in fields.items():
        ours, value = file.metadata[name], field.contents()
        if isinstance(ours, float):
            assert np.float32(ours) == np.float32(value)
        elif isinstance(ours, np.ndarray):
            assert ours.tolist() == value
        else:
            assert (list(ours) if isinstance(ours, Strings) else ours) == value
            assert isinstance(ours, Strings) or type(ours) is type(value)
    assert list(file.tensors) == [tensor.name for tensor in expected.tensors]
    for tensor in expected.tensors:
        ours = file.tensors[tensor.name]
        assert ours.shape == tuple(tensor.shape.tolist()[::-1])
        assert ours.type.name == tensor.tensor_type.name
        assert np.array_equal(ours.data, tensor.data.reshape(-1).view(np.uint8))
        values = np.concatenate(list(ours.stored().blocks()))
        assert values.shape == ours.shape
        if ours.type.name != "BF16":
            wanted = theirs.dequantize(tensor.data, tensor.tensor_type)
            assert np.array_equal(values, wanted.reshape(ours.shape))


def test_tensors_are_views(reference):
    file = gguf.read(reference / "gguf" / "mixtral.Q4_0.gguf")
    stack, norm = file.tensors["blk.0.ffn_gate_exps.weight"], file.tensors["output_norm.weight"]
    matrix = stack.matrix()
    assert isinstance(matrix, Blocks) and len(matrix.shape) == 3
    assert np.shares_memory(matrix[1].data, stack.data)
    assert np.shares_memory(norm.floats(), norm.data) and norm.floats().dtype == np.float32
    with pytest.raises(CheckpointError, match=r"ffn_gate_exps.weight: is Q4_0, expected F32, F16"):
        stack.floats()


VALUES = [
    (0, "<B", 200), (1, "<b", -3), (2, "<H", 60000), (3, "<h", -300), (4, "<I", 2**32 - 1),
    (5, "<i", -5), (6, "<f", 1e-6), (7, "<?", True), (10, "<Q", 2**64 - 1), (11, "<q", -(2**63)),
    (12, "<d", 1e-300),
]  # fmt: skip


def test_every_type_of_value(written):
    keys = [key(f"k{kind}", kind, struct.pack(form, value)) for kind, form, value in VALUES]
    keys += [
        key(f"a{kind}", 9, struct.pack("<IQ", kind, 2) + 2 * struct.pack(form, value))
        for kind, form, value in VALUES
    ]
    keys += [key("text", 8, string("käse")), strings("texts", "a", "", "▁b"), strings("none")]
    file = gguf.read(written(packed(keys, version=2)))
    assert file.version == 2 and not file.tensors and len(file.metadata) == len(keys)
    for kind, _, value in VALUES:
        assert file.metadata[f"k{kind}"] == value
        assert type(file.metadata[f"k{kind}"]) is type(value)
        assert file.metadata[f"a{kind}"].shape == (2,)
        assert file.metadata[f"a{kind}"][1] == (np.float32(value) if kind == 6 else value)
    assert file.metadata["text"] == "käse"
    texts = file.metadata["texts"]
    assert list(texts) == ["a", "", "▁b"] and texts[-1] == "▁b" and texts[1:] == ["", "▁b"]
    assert len(texts) == 3 and "▁b" in texts and repr(texts) == "Strings(3 of texts)"
    assert list(file.metadata["none"]) == []
    with pytest.raises(IndexError):
        texts[3]


def test_checked_values(written):
    number = struct.pack("<I", 7)
    layers = struct.pack("<IQ3I", 4, 3, 5, 5, 5)
    keys = [
        key("general.architecture", 8, string("llama")), key("llama.n", 4, number),
        key("llama.x", 6, struct.pack("<f", 0.5)), key("llama.nan", 6, struct.pack("<f", np.nan)),
        key("llama.flag", 7, b"\1"), key("llama.less", 5, struct.pack("<i", -7)),
        key("llama.heads", 9, layers), key("llama.mixed", 9, layers[:-1] + b"\1"),
        strings("llama.texts", "a"),
    ]  # fmt: skip
    data = gguf.read(written(packed(keys))).metadata
    assert data.whole(".n") == 7 and data.number(".n") == 7.0 and data.number(".x") == 0.5
    assert data.flag(".flag") is True and data.text("general.architecture") == "llama"
    assert data.whole(".absent", 3) == 3 and data.number(".absent", None) is None
    assert data.same_in_all_layers(".heads") == 5 and data.same_in_all_layers(".n") == 7
    assert data.numbers(".heads").tolist() == [5, 5, 5] and list(data.strings(".texts")) == ["a"]
    for call, message in (
        (lambda: data.whole(".absent"), "x.gguf: has no llama.absent"),
        (lambda: data.whole(".x"), "x.gguf: llama.x = 0.5, expected a whole number"),
        (lambda: data.whole(".less"), "llama.less = -7, expected a whole number"),
        (lambda: data.whole(".flag"), "llama.flag = True, expected a whole number"),
        (lambda: data.number(".nan"), "llama.nan = nan, expected a number"),
        (lambda: data.text(".n"), "llama.n = 7, expected a string"),
        (lambda: data.flag(".n"), "llama.n = 7, expected true or false"),
        (lambda: data.numbers(".n"), "llama.n = 7, expected an array of numbers"),
        (lambda: data.strings(".heads"), "expected an array of strings"),
        (lambda: data.same_in_all_layers(".mixed"), "expected the same whole number for each"),
    ):
        with pytest.raises(CheckpointError, match=message):
            call()


ONE = info("a", (4, 2))  # 32 bytes
UNREADABLE = struct.pack("<Q", 2**63)
REFUSED = {
    "empty": (b"", "an empty file"),
    "another magic": (b"GGUX" + bytes(40), r"begins with b'GGUX', expected b'GGUF'"),
    "cut in the header": (b"GGUF\3\0\0\0" + bytes(9), "needs 8 bytes at byte 16, the file has 1"),
    "version 1": (packed(version=1), "is of GGUF version 1, expected 2 or 3: get a newer file"),
    "version 4": (packed(version=4), "version 4, expected 2 or 3: llama2np is too old for it"),
    "big-endian": (b"GGUF\0\0\0\3" + bytes(16), "is big-endian"),
    "tensors": (packed(counts=(2**63, 0)), "claims 9,223,372,036,854,775,808 tensors"),
    "keys": (packed(counts=(0, 2**32)), "and 4,294,967,296 keys of metadata"),
    "absent keys": (packed(counts=(0, 9), alignment=1), "the file has 0 there: truncated download"),
    "long key": (packed([UNREADABLE]), "a key claims 9,223,372,036,854,775,808 bytes"),
    "key twice": (packed([key("a", 7, b"\0"), key("a", 4, bytes(4))]), "the key 'a' occurs twice"),
    "key of bytes": (packed([key(b"\xff", 7, b"\0")]), "a key is not UTF-8: invalid start byte"),
    "type": (packed([key("a", 13, bytes(8))]), "'a' is of type 13, expected a type from 0 to 12"),
    "long string": (packed([key("a", 8, UNREADABLE)]), "'a' claims 9,223,372,036,854,775,808"),
    "nested": (packed([key("a", 9, struct.pack("<IQ", 9, 1))]), "'a' is an array of arrays"),
    "array type": (packed([key("a", 9, struct.pack("<IQ", 99, 1))]), "'a' is of type 99"),
    "long array": (packed([key("a", 9, b"\4\0\0\0" + UNREADABLE)]), "needs 36,893,488,147,419,103"),
    "strings": (packed([key("a", 9, b"\x08\0\0\0" + UNREADABLE)]), "expected at most 4,194,304"),
    "cut strings": (
        packed([key("a", 9, struct.pack("<IQ", 8, 2) + string("x"))], alignment=1),
        "'a' claims 2 strings, of which the file has 1: truncated download?",
    ),
    "huge string in an array": (
        packed([key("a", 9, struct.pack("<IQ", 8, 2) + b"\xff" * 8)]),
        "'a' claims 2 strings",
    ),
    "alignment 0": (packed([key("general.alignment", 4, bytes(4))]), "alignment is 0, expected a"),
    "alignment 12": (packed([key("general.alignment", 4, b"\x0c\0\0\0")]), "a power of two"),
    "text as alignment": (packed([key("general.alignment", 8, string("x"))]), "is 'x', expected a"),
    "no axes": (packed(infos=[info("a", ())]), "'a' has 0 axes, expected 1 to 4"),
    "axes": (packed(infos=[info("a", [1] * 5)]), "'a' has 5 axes, expected 1 to 4"),
    "no values": (packed(infos=[info("a", (4, 0))]), r"'a' claims the shape \(0, 4\)"),
    "many values": (packed(infos=[info("a", [2**63] * 4)]), "'a' claims the shape"),
    "unknown type": (packed(infos=[info("a", (4, 2), 99)]), "'a' is type 99, expected one of F32,"),
    "removed type": (packed(infos=[info("a", (32, 2), 31)]), "'a' is Q4_0_4_4, expected one of"),
    "ragged row": (packed(infos=[info("a", (48, 2), 2)]), "is Q4_0 in rows of 48 values, expected"),
    "cut data": (packed(infos=[ONE], data=bytes(31)), "to byte 32, the file has 31 bytes of data"),
    "far offset": (packed(infos=[info("a", (4, 2), 0, 2**64 - 32)], data=bytes(32)), "truncated"),
    "offset": (packed(infos=[info("a", (4, 2), 0, 4)], data=bytes(64)), "a multiple of 32"),
    "overlap": (
        packed(infos=[info("a", (9, 1)), info("b", (4, 2), 0, 32)], data=bytes(64)),
        "'b' overlaps with another tensor at byte 32",
    ),
    "tensor twice": (
        packed(infos=[ONE, info("a", (4, 2), 0, 32)], data=bytes(64)),
        "the tensor 'a' occurs twice",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_damaged_file_is_refused_in_one_line(written, case):
    data, message = REFUSED[case]
    with pytest.raises(CheckpointError, match=message) as error:
        gguf.read(written(data))
    text = str(error.value)
    assert "x.gguf: " in text and text.isprintable() and len(text) < 400


def test_another_kind_of_file_is_named(written):
    with pytest.raises(CheckpointError, match="x.gguf: not a GGUF file, but a zip archive"):
        gguf.read(written(b"PK\5\6" + bytes(18)))
    with pytest.raises(FileNotFoundError):
        gguf.read("absent.gguf")


def test_gaps_other_orders_and_alignments_are_read(written):
    infos = [info("b", (4, 2), 0, 128), info("a", (3,), 0, 0)]
    align = key("general.alignment", 4, struct.pack("<I", 64))
    data = np.arange(48, dtype="<f4").tobytes()
    tensors = gguf.read(written(packed([align], infos, data, alignment=64))).tensors
    assert tensors["b"].array().tolist() == [[32, 33, 34, 35], [36, 37, 38, 39]]
    assert tensors["a"].array().tolist() == [0, 1, 2]


def test_a_tensor_of_an_unreadable_type_is_refused_when_it_is_used(written):
    file = gguf.read(written(packed(infos=[info("a", (256, 2), 17)], data=bytes(148))))
    assert file.tensors["a"].stored().dtype == "IQ2_XS"
    for use in (lambda t: t.matrix(), lambda t: t.floats(), lambda t: list(t.stored().blocks())):
        with pytest.raises(CheckpointError, match=r"x.gguf: a: is IQ2_XS, which cannot be read"):
            use(file.tensors["a"])


def test_bytes_that_are_not_text_are_found_when_they_are_used(written):
    texts = gguf.read(written(packed([strings("a", "x", b"\xff\n")]))).metadata["a"]
    assert texts[0] == "x"
    for use in (lambda: texts[1], lambda: list(texts), lambda: texts[:]):
        with pytest.raises(ValueError, match=r"a is not UTF-8: invalid start byte, in b'\\xff\\n'"):
            use()
