"Signed sentences: the same everywhere, by the right people, with the space and the face that the grammar asks for."
import numpy as np
import pytest

from signbook.corpora import pocket, sentences
from signbook.corpora.grammar import COUNTED, GLOSSES80, REPEATED, SLICES, Token
from signbook.corpora.phonology import HANDSHAPES, lexicon
from signbook.corpora.sensing import CLEAN
from signbook.corpora.signing import LOCI, NUMBERS, compile_lexicon, with_numbers
from signbook.corpora.views import view, with_view
from signbook.errors import UserError
from signbook.poses.clips import check, cut, shoulder_frame
from signbook.poses.kinematics import points_of
from signbook.poses.skeletons import LAYOUTS

QUIET = pocket.Variation(0, 0, (0, 0, 0), 0, 0, 0, 0, 0, 0, 0)  # twelve signers who differ in their bodies only


@pytest.fixture(scope='module')
def smoke(): return list(sentences.clips('smoke'))


def signed(*tokens, draw=0, **options):
    "Joints in shoulder widths and the spans of one sentence by one signer."
    motion = sentences.perform(tokens, np.zeros(len(tokens), int), np.array([0]), np.random.default_rng(draw), variation=QUIET, **options)
    joints = points_of(motion.parameters, 'smplx55')/.33
    return joints - joints[:, 16:18].mean(1, keepdims=True), motion


def head_yaw(motion):
    "Radians, from the two joints that turn the head."
    return motion.parameters[:, 3*12 + 1] + motion.parameters[:, 3*15 + 1]


def test_isolated_corpus_is_still_the_frozen_one():
    assert pocket.fingerprint(pocket.build('smoke')) == 'ed148dcd5d8983a8'  # sentences share its code, not its random numbers


def test_fingerprint_is_the_recorded_one(smoke): assert pocket.fingerprint(smoke) == sentences.FINGERPRINT['smoke']


def test_a_part_is_the_same_as_in_the_whole(smoke):
    for split in ('dev', 'test_signers'):
        part = list(sentences.clips(900, split=split, count=3))  # another size, one split, a few clips
        assert pocket.fingerprint(part) == pocket.fingerprint([clip for clip in smoke if clip.split == split][:3])
    other = list(sentences.clips('smoke', seed=1, split='dev', count=3))
    assert pocket.fingerprint(other) != pocket.fingerprint([clip for clip in smoke if clip.split == 'dev'][:3])


def test_layouts_show_the_same_motion(smoke):
    for layout in ('coco133', 'skels50', 'smplx55'):
        clip = next(sentences.clips('smoke', split='test', layout=layout, count=1))
        same = next(c for c in smoke if c.id == clip.id)
        assert clip.layout == layout and np.array_equal(clip.streams['smplx'], same.streams['smplx']) and clip.segments == same.segments


def test_clips_are_whole(smoke):
    assert len({clip.id for clip in smoke}) == len(smoke) == 160
    for clip in smoke:
        check(clip)
        assert clip.streams['smplx'].shape == (len(clip), 179) and clip.streams['smplx'].dtype == np.float32
        assert clip.fps == 25 and clip.source == 'pocket' and clip.language in ('de', 'zh', 'en') and clip.text
        assert clip.id.split('/')[0] == clip.split and not clip.points[clip.confidence == 0].any()


def test_segments_cover_the_signs_in_order(smoke):
    for clip in smoke:
        assert [gloss for *_, gloss in clip.segments] == clip.gloss.split() and set(clip.gloss.split()) <= set(GLOSSES80)
        edges = [moment for start, end, _ in clip.segments for moment in (start, end)]
        assert edges == sorted(edges) and 0 < edges[0] and edges[-1] < len(clip)
        assert min(end - start for start, end, _ in clip.segments) >= 4
        between = [b[0] - a[1] for a, b in zip(clip.segments, clip.segments[1:])]
        assert min(between) >= 1 and np.mean(between) < 12, 'no rest between signs'


def test_splits_have_their_signers(smoke):
    signers = {split: {clip.signer for clip in smoke if clip.split == split} for split in SLICES}
    train, dev, test = ({pocket.SIGNERS[i] for i in pocket.SPLITS[name]} for name in ('train', 'dev', 'test'))
    assert signers['train'] == train and signers['test'] <= train and signers['test_sentences'] <= train
    assert signers['test_signers'] == test and signers['dev'] & dev == dev and signers['dev'] & train and not signers['dev'] & test
    assert sum(clip.signer in dev for clip in smoke if clip.split == 'dev') == 8


def test_records_stand_beside_the_clips(smoke):
    for clip, (name, split, sentence) in zip(smoke, sentences.records('smoke'), strict=True):
        assert (clip.id, clip.split, clip.text, clip.gloss) == (name, split, sentence.text, sentence.gloss)


def test_direction_tells_who_asks_whom():
    for a, b in ((1, 2), (1, 3), (3, 2)):
        ways = []
        for loci in ((a, b), (b, a)):
            joints, motion = signed(Token('TODAY'), Token('ASK', loci=loci), Token('BOOK'))
            start, end = motion.spans[1]
            ways.append(joints[end - 1, 21] - joints[start, 21])
        wanted = LOCI[b] - LOCI[a]
        assert ways[0] @ ways[1] < 0 and ways[0] @ wanted > 0 > ways[1] @ wanted


def test_pronouns_point_to_their_place():
    ends = [(lambda joints, motion: joints[motion.spans[1, 1] - 1, 21])(*signed(Token('TODAY'), Token('SHE', loci=(0, n)))) for n in (1, 2, 3)]
    nearest = np.linalg.norm(np.array(ends)[:, None] - LOCI[None, 1:], axis=2).argmin(1)
    assert nearest.tolist() == [0, 1, 2]


def test_numbers_are_ten_hands_and_none_is_that_of_a_counted_sign():
    shapes = np.array([HANDSHAPES[name] for name in NUMBERS.values()])
    apart = np.abs(shapes[:, None] - shapes[None]).max((2, 3))
    assert len(NUMBERS) == 10 and apart[~np.eye(10, dtype=bool)].min() > 20
    table = lexicon().set_index('gloss')
    assert not {table.loc[gloss, 'handshape'] for gloss in (*COUNTED, *REPEATED, 'AFTERNOON')} & set(NUMBERS.values())
    signs = compile_lexicon()
    counted = with_numbers(signs, np.full(200, 6))
    base = signs.hands == 3
    assert np.array_equal(counted.begin.fingers[base, 1], signs.begin.fingers[base, 1]), 'a base hand does not count'
    assert (counted.end.fingers[:, 0] == HANDSHAPES['phone']).all()
    shown = [signed(Token('TODAY'), Token('DEGREE', number=n))[1] for n in (1, 5)]
    hands = [motion.parameters[sum(motion.spans[1])//2, 111:156] for motion in shown]
    assert np.abs(hands[0] - hands[1]).max() > .8


def test_a_shaken_head_shakes_through_the_transition():
    still, shaken = (signed(*[Token(gloss, face=face) for gloss in ('BOOK', 'BUY', 'TEACHER')])[1] for face in ('neutral', 'shake'))
    between = slice(shaken.spans[0, 1], shaken.spans[1, 0])
    signing = slice(shaken.spans[0, 0], shaken.spans[2, 1])
    assert np.array_equal(still.spans, shaken.spans) and np.ptp(head_yaw(shaken)[signing]) > .35 > 2*np.ptp(head_yaw(still)[signing])
    assert np.ptp(head_yaw(shaken)[between]) > 2*np.ptp(head_yaw(still)[between])
    turns = np.flatnonzero(np.diff(np.sign(np.gradient(head_yaw(shaken)[signing]))))
    assert len(turns) >= 4, 'to and fro, not once'


def test_brows_last_and_replace_those_of_the_sign():
    raised = signed(*[Token(gloss, face='brow_raise') for gloss in ('TODAY', 'ASK', 'BOOK')])[1]
    span = slice(raised.spans[0, 0], raised.spans[2, 1])
    assert raised.parameters[span, 169].min() > .8 and np.abs(raised.parameters[span, 170]).max() < .1  # ASK alone has furrowed brows
    assert abs(raised.parameters[-1, 169]) < .1
    assert signed(Token('TODAY'), Token('ASK'))[1].parameters[:, 170].max() > .8


def test_second_hand_perseverates_sometimes():
    table = lexicon().set_index('gloss')
    two, one = 'APPLE', 'BOOK'
    assert table.loc[two, 'hands'] != 'one' and table.loc[one, 'hands'] == 'one'
    heights = []
    for draw in range(60):
        joints, motion = signed(Token(two), Token(one), Token(one), draw=draw)
        heights.append([joints[sum(span)//2, 20, 1] for span in motion.spans])
    up = np.array(heights) > -.6
    assert up[:, 0].all() and .1 < up[:, 1].mean() < .6 and not up[:, 2].any()


def test_second_forms_can_be_switched_off():
    plain, own = ([*sentences.clips('smoke', split='train', forms=forms)] for forms in (0, 2))
    changed = [not np.array_equal(a.streams['smplx'], b.streams['smplx']) for a, b in zip(plain, own)]
    assert 0 < np.mean(changed) <= 1 and [clip.gloss for clip in plain] == [clip.gloss for clip in own]


def test_dictionary_fits():
    book = list(sentences.dictionary(per_gloss=1))
    assert {clip.gloss for clip in book} == set(GLOSSES80) and 80 < len(book) <= 88
    assert {clip.signer for clip in book} <= {pocket.SIGNERS[i] for i in pocket.SPLITS['train']}
    for clip in book:
        check(clip)
        (start, end, gloss), = clip.segments
        assert clip.split == 'dictionary' and gloss == clip.gloss and 0 < start < end < len(clip) <= 62
    assert pocket.fingerprint(book) == pocket.fingerprint(list(sentences.dictionary(per_gloss=1)))


def test_views_of_every_layout_and_of_cut_clips():
    for layout in LAYOUTS:
        clip = next(sentences.clips('smoke', split='dev', layout=layout, count=1, sensing=CLEAN))
        picture = view(clip, 32)
        assert picture.shape == (len(clip), 32, 32, 3) and picture.dtype == np.uint8 and .01 < (picture.min(-1) < 200).mean() < .3
    whole = next(sentences.clips('smoke', split='dev', count=1, frames=True))
    assert np.array_equal(whole.streams['frames'], with_view(whole).streams['frames'])
    part = cut(whole, 5, 25)
    assert part.streams['frames'].shape == (20, 64, 64, 3) and shoulder_frame(part)[1] > 0


@pytest.mark.parametrize('wrong, words', [(dict(preset='huge'), 'choose smoke, laptop'), (dict(preset=3), 'ask for 8 or more'),
                                          (dict(preset='smoke', split='eval'), 'choose one of train'),
                                          (dict(preset='smoke', layout='h75'), 'not declared')])
def test_wrong_settings_are_told(wrong, words):
    with pytest.raises(UserError, match=words): list(sentences.clips(**wrong))


def test_dictionary_has_limits():
    with pytest.raises(UserError, match='1 to 5'): list(sentences.dictionary(per_gloss=9))
