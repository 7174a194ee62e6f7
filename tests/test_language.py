"""Pieces, prompts, small and published mT5, and the smoothed loss, under stress and beside upstream's numbers."""

import json
import os
import pickle
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from signbook.errors import UserError
from signbook.layers.language import (
    EOS,
    IGNORED,
    MT5_BASE,
    PAD,
    UNKNOWN,
    Pieces,
    cross_entropy,
    mt5_config,
    pretrained_mt5,
    prompt_for,
    quiet,
    small_mt5,
    train_sentencepiece,
)


@pytest.fixture(scope="module")
def texts():
    from signbook.corpora.sentences import records

    return [sentence.text for _, _, sentence in records("smoke")]


@pytest.fixture(scope="module")
def pieces(texts):
    return Pieces.from_bytes(train_sentencepiece(texts, 600))


@pytest.fixture(scope="session")
def parity():
    folder = os.environ.get("SIGNBOOK_PARITY")
    if not folder:
        pytest.skip("SIGNBOOK_PARITY is not set; the fixtures of upstream numbers are needed")
    return Path(folder) / "geosign"


def stored(parity, name):
    return json.loads((parity / name).read_text(encoding="utf-8"))


def folded(text):
    return " ".join(unicodedata.normalize("NFKC", text).split())


def told(call):
    "The one sentence of the error."
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400
    return text


# pieces


def test_the_same_texts_give_the_same_bytes_in_another_process(texts, pieces):
    script = (
        "import sys, json; from signbook.layers.language import Pieces, train_sentencepiece;"
        "print(Pieces.from_bytes(train_sentencepiece(json.load(sys.stdin), 600)).hash)"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", script], input=json.dumps(texts), capture_output=True, text=True, check=True, env=env)
    assert done.stdout.split()[-1] == pieces.hash


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_there_and_back_is_folding(texts, kind):
    model = Pieces.from_bytes(train_sentencepiece(texts, 500, kind))
    assert model.size <= 500
    for text in texts:
        ids = model.encode(text)
        assert UNKNOWN not in ids and PAD not in ids and ids.count(EOS) == 1 and ids[-1] == EOS
        assert model.decode(ids) == folded(text)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_text_of_known_characters_comes_back(pieces, texts, data):
    letters = sorted({letter for text in texts for letter in folded(text)})
    text = data.draw(st.text(alphabet=letters, max_size=60))
    assert pieces.decode(pieces.encode(text)) == folded(text)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=80))
def test_no_text_is_too_strange(pieces, text):
    ids = pieces.encode(text, 20)
    assert 1 <= len(ids) <= 20 and ids[-1] == EOS and all(0 <= i < pieces.size for i in ids)
    assert isinstance(pieces.decode(ids), str)


def test_unknown_characters_are_one_piece_and_leave_no_text(pieces):
    assert pieces.encode("☃☃🤟").count(UNKNOWN) == 1
    assert pieces.decode(pieces.encode("☃🤟")) == ""
    assert pieces.decode([5, UNKNOWN, 6]) == pieces.decode([5, 6])


def test_words_that_look_like_special_pieces_are_text(pieces):
    for text in ("</s>", "<pad>", "<unk>"):
        assert pieces.encode(text).count(EOS) == 1 and PAD not in pieces.encode(text)


def test_what_does_not_belong_to_a_text_is_passed_over(pieces, texts):
    ids = pieces.encode(texts[0])
    padded = torch.tensor([PAD, *ids, PAD, PAD])
    assert pieces.decode(padded) == pieces.decode(ids) == folded(texts[0])
    assert pieces.decode([*ids, pieces.size, 250_111]) == folded(texts[0])   # tables are wider than lists
    assert pieces.decode([]) == "" and pieces.decode(torch.zeros(0, dtype=torch.long)) == ""


def test_a_batch_is_filled_up_cut_off_and_of_any_size(pieces, texts):
    long = " ".join(texts)
    ids = pieces.batch([texts[0], long, ""])
    assert ids.shape == (3, 50) and ids.dtype == torch.long
    assert ids[1].tolist() == [*pieces.encode(long)[:49], EOS]
    assert ids[0].tolist() == pieces.encode(texts[0]) + [PAD] * (50 - len(pieces.encode(texts[0])))
    assert ids[2].tolist() == [EOS] + [PAD] * 49
    assert pieces.batch([texts[0]]).tolist() == [pieces.encode(texts[0])]
    assert pieces.batch([""]).tolist() == [[EOS]] and pieces.batch([]).numel() == 0
    assert pieces.batch([long], 1).tolist() == [[EOS]]


def test_pieces_are_their_bytes(pieces, tmp_path):
    pieces.write(tmp_path / "spiece.model")
    again = Pieces.read(tmp_path)
    assert again == pieces and again.hash == pieces.hash and hash(again) == hash(pieces)
    other = pickle.loads(pickle.dumps(pieces))
    assert other == pieces and other.encode("x") == pieces.encode("x")
    assert len(repr(pieces)) < 40


def test_a_bad_model_file_is_one_sentence(tmp_path, pieces):
    for name, content in {"empty": b"", "text": b"not a model", "half": pieces.model[: len(pieces.model) // 2]}.items():
        (tmp_path / name).write_bytes(content)
        assert name in told(lambda name=name: Pieces.read(tmp_path / name))
    assert "spiece.model" in told(lambda: Pieces.read(tmp_path))
    assert "nowhere" in told(lambda: Pieces.read(tmp_path / "nowhere"))


def test_too_little_text_or_room_is_one_sentence(texts):
    assert "20" in told(lambda: train_sentencepiece(texts, 20))
    told(lambda: train_sentencepiece([], 100))
    told(lambda: train_sentencepiece(["", "  "], 100))
    told(lambda: train_sentencepiece(texts, 300, "letters"))


def test_prompts():
    assert prompt_for("de") == "Translate sign language video to German: "
    assert prompt_for("eng") == prompt_for("en-GB") == "Translate sign language video to English: "
    assert prompt_for("en", upstream=True) == prompt_for("zh")
    assert "'xx'" in told(lambda: prompt_for("xx"))
    told(lambda: prompt_for(""))


# mT5


@pytest.mark.parametrize("tied", [False, True])
def test_one_table_reads_at_both_ends(tied):
    model = small_mt5(40, 16, 32, 8, 2, 2, tied=tied)
    assert model.encoder.embed_tokens.weight is model.shared.weight is model.decoder.embed_tokens.weight
    assert (model.lm_head.weight is model.shared.weight) == tied
    c = model.config
    assert (c.pad_token_id, c.eos_token_id, c.decoder_start_token_id, c.tie_word_embeddings) == (PAD, EOS, PAD, tied)
    labels = torch.tensor([[5, 6, EOS]])
    loss = model(inputs_embeds=torch.randn(1, 4, 16), labels=labels).loss
    loss.backward()
    assert model.shared.weight.grad is not None and abs(loss.item() - torch.tensor(40.0).log()) < 2


def test_sizes_of_the_published_model():
    with torch.device("meta"):
        model = small_mt5(**MT5_BASE)
    assert sum(p.numel() for p in model.parameters()) == 582_401_280
    assert model.lm_head.weight.shape == model.shared.weight.shape == (250_112, 768)


def test_weights_come_back_and_no_key_is_drawn_at_random(tmp_path):
    model = small_mt5(40, 16, 32, 8, 2, 2).eval()
    with quiet():
        model.save_pretrained(tmp_path)
    again = pretrained_mt5(tmp_path).eval()
    for (name, a), (other, b) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b)
    assert again.shared.weight is again.encoder.embed_tokens.weight
    weights = load_file(tmp_path / "model.safetensors")
    del weights["decoder.block.0.layer.1.EncDecAttention.q.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "decoder.block.0.layer.1.EncDecAttention.q.weight" in told(lambda: pretrained_mt5(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    assert str(tmp_path) in told(lambda: pretrained_mt5(tmp_path))


def test_the_configuration_is_read_without_the_weights(tmp_path, monkeypatch):
    small_mt5(40, 16, 32, 8, 2, 3).config.save_pretrained(tmp_path)
    config = mt5_config(tmp_path)
    assert (config.vocab_size, config.d_model, config.num_decoder_layers, config.tie_word_embeddings) == (40, 16, 3, False)
    told(lambda: pretrained_mt5(tmp_path))   # there are no weights
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "t5"}))
    assert "'t5'" in told(lambda: mt5_config(tmp_path))
    (tmp_path / "config.json").unlink()
    assert "config.json is missing" in told(lambda: pretrained_mt5(tmp_path))


def test_a_model_that_is_nowhere_is_one_sentence():
    assert os.environ.get("HF_HUB_OFFLINE") == "1"
    assert "signbook/nowhere" in told(lambda: pretrained_mt5("signbook/nowhere"))
    assert "signbook/nowhere" in told(lambda: Pieces.read("signbook/nowhere"))


# the loss


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("chunk", [1, 130, 2**25])
def test_the_loss_and_its_gradient_are_torchs(dtype, smoothing, chunk):
    torch.manual_seed(0)
    logits = (4 * torch.randn(3, 7, 60, dtype=torch.float64)).to(dtype).requires_grad_()
    labels = torch.randint(0, 60, (3, 7)).masked_fill(torch.rand(3, 7) < 0.4, IGNORED)
    wide = logits.detach().double().requires_grad_()
    theirs = torch.nn.functional.cross_entropy(wide.flatten(0, 1), labels.flatten(), label_smoothing=smoothing)
    ours = cross_entropy(logits, labels, smoothing, chunk)
    (3 * theirs).backward(), (3 * ours).backward()
    near = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2}[dtype]
    assert ours.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(ours.double(), theirs, rtol=min(near, 1e-5))
    assert logits.grad.dtype == dtype and torch.allclose(logits.grad.double(), wide.grad, rtol=near, atol=near * 0.1)


def test_the_gradient_agrees_with_differences():
    torch.manual_seed(0)
    logits = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 7, IGNORED, 3, 3])
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, labels, 0.2, 16), logits)


def test_without_labels_there_is_nothing_to_learn():
    logits = torch.randn(2, 3, 8, requires_grad=True)
    loss = cross_entropy(logits, torch.full((2, 3), IGNORED))
    loss.backward()
    assert loss == 0 and not logits.grad.any()


def test_nan_is_not_hidden():
    logits = torch.zeros(2, 8)
    logits[1, 3] = torch.nan
    assert cross_entropy(logits, torch.tensor([1, 2])).isnan()


# upstream's numbers


def upstream_mt5(parity):
    "The mT5 of the fixtures, from upstream's state dict."
    weights = load_file(parity / "state_dict.safetensors")
    weights.update({name: weights[origin] for name, origin in stored(parity, "state_dict_aliases.json").items()})
    config = stored(parity, "meta.json")["meta.mt5_config"]
    names = {"vocab_size": "vocabulary", "d_model": "d_model", "d_ff": "d_ff", "d_kv": "d_kv", "num_heads": "heads", "num_layers": "layers"}
    model = small_mt5(**{ours: config[theirs] for theirs, ours in names.items()}).eval()
    model.load_state_dict({name.removeprefix("mt5_model."): value for name, value in weights.items() if name.startswith("mt5_model.")})
    return model


def test_geosign_parity_tokenizer_ids(parity):
    pieces, prompts = Pieces.read(parity / "tokenizer.spm"), load_file(parity / "inputs.safetensors")
    assert pieces.size == stored(parity, "meta.json")["meta.mt5_config"]["vocab_size"]
    assert torch.equal(pieces.batch([prompt_for("de", upstream=True)] * 3), prompts["src.prefix_ids"])
    assert torch.equal((prompts["src.prefix_ids"] != PAD).long(), prompts["src.prefix_mask"])


def test_geosign_parity_labels(parity):
    pieces, sentences = Pieces.read(parity / "tokenizer.spm"), stored(parity, "inputs.json")["tgt.gt_sentence"]
    labels = load_file(parity / "inputs.safetensors")["tgt.labels_ids"]
    assert torch.equal(pieces.batch(sentences), labels)
    assert [pieces.decode(row) for row in labels] == [folded(text) for text in sentences]


def test_geosign_parity_tokenizer_ids_by_another_program(parity, texts):
    "The unigram model of the tokenizers library, given the same prices, cuts the same texts in the same way."
    from tokenizers import Tokenizer, models, pre_tokenizers

    pieces = Pieces.read(parity / "tokenizer.spm")
    prices = [(pieces.processor.id_to_piece(i), pieces.processor.get_score(i)) for i in range(pieces.size)]
    other = Tokenizer(models.Unigram(prices, unk_id=UNKNOWN))
    other.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    sentences = [*stored(parity, "inputs.json")["tgt.gt_sentence"], prompt_for("zh"), "  天气　怎么样？！", "ﬁne ½ ☃ café", *texts]
    for text in sentences:
        assert pieces.encode(text) == [*other.encode(folded(text)).ids, EOS]


def test_geosign_parity_logits_and_loss(parity):
    from transformers.modeling_outputs import BaseModelOutput

    model, case = upstream_mt5(parity), load_file(parity / "cases" / "pooled_decoder.safetensors")
    labels = load_file(parity / "inputs.safetensors")["tgt.labels_ids"]
    labels = labels.masked_fill(labels == PAD, IGNORED)
    mask = case["out_attention_mask"]
    with torch.no_grad():
        encoded = model.encoder(inputs_embeds=case["out_inputs_embeds"], attention_mask=mask).last_hidden_state
        before = model._shift_right(labels)
        decoded = model.decoder(input_ids=before, encoder_hidden_states=encoded, encoder_attention_mask=mask).last_hidden_state
        logits = model(encoder_outputs=BaseModelOutput(encoded), attention_mask=mask, labels=labels).logits
    for ours, name in ((encoded, "encoder_last_hidden"), (decoded, "decoder_last_hidden"), (logits, "logits")):
        assert (ours - case[name]).norm() < 1e-5 * case[name].norm(), name
    expected = stored(parity, "cases/pooled_decoder.json")["out_ce_loss"]
    assert abs(cross_entropy(logits, labels).item() - expected) < 1e-5 * expected
