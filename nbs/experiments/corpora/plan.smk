# The corpus is packed once per request; every system reads the same stores.
def packed(corpus): return step('corpora', 'prepare', 'corpora/prepare.ipynb', variant=corpus,
                                parameters=dict(corpus=corpus, preset=request.preset, **data(corpus)))

if request.corpus == 'pocket':
    signs, sentences, dictionary = map(packed, ('pocket', 'pocket_sentences', 'pocket_dictionary'))
    step('corpora', 'properties', 'corpora/properties.ipynb', variant='pocket', inputs=dict(corpus=signs), parameters=dict(preset=request.preset))
    step('corpora', 'properties', 'corpora/sentences.ipynb', variant='pocket_sentences',
         inputs=dict(sentences=sentences, dictionary=dictionary), parameters=dict(preset=request.preset))
elif request.corpus != 'published_predictions': packed(request.corpus)
