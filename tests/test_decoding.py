"""The searches against those of transformers, over many small models, and upstream's own sentences."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from signbook.errors import UserError
from signbook.layers.decoding import Decoder, MT5Decoder, by_length, generate, in_length_order
from signbook.layers.language import small_mt5


@pytest.fixture(scope="session")
def parity():
    folder = os.environ.get("SIGNBOOK_PARITY")
    if not folder:
        pytest.skip("SIGNBOOK_PARITY is not set; the fixtures of upstream numbers are needed")
    return Path(folder) / "geosign"


def library(model, encoded, mask, beams, new_tokens, n_best=1, length_penalty=1.0):
    "What transformers finds: numbers, with zeros behind the end as we write them, and scores."
    from transformers.modeling_outputs import BaseModelOutput

    more = {"length_penalty": length_penalty, "early_stopping": False} if beams > 1 else {}
    out = model.generate(
        encoder_outputs=BaseModelOutput(encoded), attention_mask=mask, num_beams=beams, max_new_tokens=new_tokens, do_sample=False,
        num_return_sequences=n_best, output_scores=True, return_dict_in_generate=True, **more,
    )  # fmt: skip
    ids, ended = out.sequences.clone(), (out.sequences[:, 1:] == 1).cumsum(1)
    ids[:, 1:][ended - (ids[:, 1:] == 1).long() > 0] = 0
    return ids.unflatten(0, (-1, n_best)), out.sequences_scores.unflatten(0, (-1, n_best)) if beams > 1 else None


def random_model(seed):
    "A small mT5 of random sizes, with logits of random strength, and a batch of clips of random lengths."
    torch.manual_seed(seed)

    def between(low, high):
        return int(torch.randint(low, high, (1,)))

    size = between(12, 90)
    model = small_mt5(size, 16 * between(1, 4), 32, 8, between(1, 4), between(1, 4), tied=bool(between(0, 2))).eval()
    clips, frames = between(1, 8), between(2, 20)
    mask = (torch.arange(frames) < torch.randint(1, frames + 1, (clips, 1))).long()
    with torch.no_grad():
        model.lm_head.weight.mul_(between(1, 5))
        if not model.config.tie_word_embeddings:
            model.lm_head.weight[1].mul_(1 + 3 * torch.rand(1))
        return model, model.encoder(inputs_embeds=torch.randn(clips, frames, model.config.d_model), attention_mask=mask).last_hidden_state, mask


@pytest.mark.parametrize("beams", [1, 2, 3, 4, 5])
def test_ids_and_scores_are_those_of_the_library(beams):
    early = 0
    for seed in range(24):
        model, encoded, mask = random_model(100 * beams + seed)
        penalty, new_tokens, n_best = (0.0, 0.6, 1.0, 2.0, -0.5)[seed % 5], 1 + (7 * seed) % 25, 1 + seed % beams
        found = generate(model, encoded, mask, beams, new_tokens, n_best, penalty)
        ids, scores = library(model, encoded, mask, beams, new_tokens, n_best, penalty)
        assert torch.equal(found.ids, ids), seed
        early += int((ids == 1).any(2).sum())
        if beams > 1:
            assert torch.allclose(found.scores, scores, rtol=1e-5, atol=2e-5), seed
            assert (found.scores[:, :-1] >= found.scores[:, 1:]).all()
    assert early > 20, "hardly a sentence ended: the test looks at the wrong models"


def test_scores_are_the_log_probabilities_of_the_sentences():
    from transformers.modeling_outputs import BaseModelOutput

    model, encoded, mask = random_model(7)
    for beams, penalty in ((1, 1.0), (4, 1.0), (4, 0.5)):
        found = generate(model, encoded, mask, beams, 12, 1, penalty)
        ids = found.ids[:, 0]
        with torch.no_grad():
            logits = model(encoder_outputs=BaseModelOutput(encoded), attention_mask=mask, decoder_input_ids=ids[:, :-1]).logits
        each = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        counted = ((ids[:, 1:] == 1).cumsum(1) - (ids[:, 1:] == 1).long()) == 0
        expected = (each * counted).sum(1) / counted.sum(1) ** penalty
        assert torch.allclose(found.scores[:, 0], expected, atol=1e-5)


@pytest.mark.parametrize("beams", [1, 4])
def test_a_clip_gets_in_a_batch_what_it_gets_alone(beams):
    for seed in range(12):
        model, encoded, mask = random_model(1000 + seed)
        together = generate(model, encoded, mask, beams, 20, min(2, beams))
        for i in range(len(encoded)):
            real = int(mask[i].sum())
            alone = generate(model, encoded[i : i + 1, :real], mask[i : i + 1, :real], beams, 20, min(2, beams))
            assert torch.equal(alone.ids[0], together.ids[i, :, : alone.ids.shape[2]]) and not together.ids[i, :, alone.ids.shape[2] :].any()
            assert torch.allclose(alone.scores[0], together.scores[i], atol=1e-5)


def test_more_beams_than_the_list_allows_still_end():
    model = small_mt5(6, 16, 32, 8, 2, 1).eval()
    encoded = torch.randn(2, 3, 16)
    found = generate(model, encoded, torch.ones(2, 3), 5, 8, 5)
    assert found.ids.shape[:2] == (2, 5) and found.scores.isfinite().all()


def test_dropout_and_gradients_have_no_say():
    model, encoded, mask = random_model(3)
    expected = generate(model, encoded, mask)
    model.train()
    found = generate(model, encoded.requires_grad_(), mask)
    assert torch.equal(found.ids, expected.ids) and torch.equal(found.scores, expected.scores) and not found.scores.requires_grad


def test_masks_of_any_type():
    model, encoded, mask = random_model(5)
    expected = generate(model, encoded, mask).ids
    for kind in (torch.bool, torch.float32, torch.int32):
        assert torch.equal(generate(model, encoded, mask.to(kind)).ids, expected)


def test_half_precision_runs():
    model, encoded, mask = random_model(11)
    found = generate(model.bfloat16(), encoded.bfloat16(), mask, 3, 10, 2)
    assert found.scores.dtype == torch.float32 and found.scores.isfinite().all()


def test_what_cannot_be_decoded_is_one_sentence():
    model, encoded, mask = random_model(1)
    broken = torch.full_like(encoded, torch.nan)
    for call in (
        lambda: generate(model, encoded, mask, 2, n_best=3),
        lambda: generate(model, encoded, mask, 0),
        lambda: generate(model, encoded, mask, new_tokens=0),
        lambda: generate(model, broken, mask),
        lambda: generate(model, broken, mask, 1),
    ):
        with pytest.raises(UserError) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert generate(model, encoded[:0], mask[:0], 3, n_best=2).ids.shape[:2] == (0, 2)
    assert generate(model, encoded[:0], mask[:0], 1).ids.shape[:2] == (0, 1)


class Spelling:
    "A decoder that is no neural network: it spells the sentence that the clip names, and remembers how often it was asked."

    start, end, pad = 0, 1, 0
    words = torch.tensor([[2, 3, 1, 1], [4, 4, 4, 1]])

    def begin(self, encoded, mask, beams, longest):
        self.asked = 0
        return 0, encoded[:, 0, 0].long()

    def step(self, ids, state):
        self.asked += ids.numel()
        logits = torch.nn.functional.one_hot(self.words[state[1], min(state[0], 3)], 6) * 20.0
        return logits[:, None].expand(-1, ids.shape[1], -1), (state[0] + 1, state[1])

    def reorder(self, state, order):
        return state

    def keep(self, state, clips):
        return state[0], state[1][clips]


def test_any_decoder_will_do_and_finished_clips_leave():
    decoder = Spelling()
    assert isinstance(decoder, Decoder) and isinstance(MT5Decoder(small_mt5(9, 16, 32, 8, 2, 1)), Decoder)
    encoded = torch.tensor([0, 1, 0, 0])[:, None, None].float()
    for beams in (1, 3):
        found = generate(decoder, encoded, torch.ones(4, 1), beams, 40)
        assert found.ids[:, 0].tolist() == [[0, 2, 3, 1, 0], [0, 4, 4, 4, 1], [0, 2, 3, 1, 0], [0, 2, 3, 1, 0]]
        assert decoder.asked == beams * (4 + 4 + 4 + 1)


def test_order_of_length():
    torch.manual_seed(0)
    for _ in range(50):
        lengths = torch.randint(1, 300, (int(torch.randint(0, 60, (1,))),)).tolist()
        batch, most = int(torch.randint(1, 20, (1,))), int(torch.randint(1, 2000, (1,)))
        batches = in_length_order(lengths, batch, most)
        assert sorted(i for items in batches for i in items) == list(range(len(lengths)))
        assert all(len(items) <= batch and (len(items) == 1 or len(items) * max(lengths[i] for i in items) <= most) for items in batches)
        flat = [lengths[i] for items in batches for i in items]
        assert flat == sorted(flat, reverse=True)
        assert by_length(lambda items, lengths=lengths: [lengths[i] for i in items], lengths, batch) == lengths
    with pytest.raises(ValueError):
        by_length(lambda items: [0], [3, 4], 2)   # a result is missing


# upstream's numbers


def fixtures(parity):
    "The model, the encoder's output and its mask."
    from test_language import upstream_mt5

    case = load_file(parity / "cases" / "pooled_decoder.safetensors")
    return upstream_mt5(parity), case["encoder_last_hidden"], case["out_attention_mask"]


@pytest.mark.parametrize("name, beams", [("beam4", 4), ("greedy", 1)])
def test_geosign_parity_generated_ids(parity, name, beams):
    model, encoded, mask = fixtures(parity)
    expected = load_file(parity / "generate.safetensors")[name]
    found = generate(model, encoded, mask, beams, expected.shape[1] - 1)
    assert torch.equal(found.ids[:, 0], expected)


def test_geosign_parity_generated_ids_up_to_a_hundred(parity):
    "Upstream's own call allows 100 new tokens; the library finds the same with the same weights."
    model, encoded, mask = fixtures(parity)
    ids, scores = library(model, encoded, mask, 4, 100, 4)
    found = generate(model, encoded, mask, 4, 100, 4)
    assert torch.equal(found.ids, ids) and torch.allclose(found.scores, scores, atol=1e-5)


def test_geosign_parity_text_of_generated_ids(parity):
    from signbook.layers.language import Pieces

    pieces = Pieces.read(parity / "tokenizer.spm")
    for row in load_file(parity / "generate.safetensors")["beam4"]:
        text = pieces.decode(row)
        assert text and pieces.encode(text)[-1] == 1 and "</s>" not in text and "<pad>" not in text
    assert json.loads((parity / "meta.json").read_text())["meta.mt5_config"]["decoder_start_token_id"] == 0
