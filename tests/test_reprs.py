"""What objects say of themselves."""

from other_files import refused

from llama2np import Llama, State, Tokenizer


def test_reprs_say_what_it_is(model):
    state = model.new_state()
    model.forward([1, 2, 3], state)
    chat, weights = model.chat(), model.transformer.weights
    assert repr(model) == "Llama(3 layers of dim 48, context 96, vocabulary 300)"
    assert repr(model.tokenizer) == "Tokenizer(300 pieces)"
    assert repr(state) == "State(3 of 96 positions read)"
    assert repr(chat) == "Chat(0 of 96 positions read)"
    assert repr(weights) == "Weights(3 layers, 30 tensors, 270,912 bytes)"
    assert repr(weights["layers.0.wq"]) == "Dense(48, 48)"
    expected = "Transformer(3 layers of dim 48, 6 heads, context 96, vocabulary 300)"
    assert repr(model.transformer) == expected
    story = model.generate("A" * 50, max_new_tokens=40, temperature=0)
    assert story.read() is not None and len(repr(story)) < 120


def test_a_path_in_place_of_what_is_in_the_file(tmp_path):
    for path in ("stories-box", tmp_path / "x.bin"):
        assert "Llama.load(" in refused(Llama, path, error=TypeError)
        assert "Llama.load(" in refused(Llama, path, path, error=TypeError)
        assert "Tokenizer.load" in refused(Tokenizer, path, error=TypeError)
        assert "State.load" in refused(State, path, error=TypeError)
    assert "Llama.load('stories-box')" in refused(Llama, "stories-box", error=TypeError)
    tokenizer = Tokenizer([b"a"], [0.0])
    assert "Llama.load" in refused(Llama, tokenizer, error=TypeError)
