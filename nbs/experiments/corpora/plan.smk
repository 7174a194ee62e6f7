# The corpus is packed once per request; every system reads the same store.
corpus = step('corpora', 'prepare', 'corpora/prepare.ipynb', variant=request.corpus,
              parameters=dict(corpus=request.corpus, preset=request.preset, **data(request.corpus)))
if request.corpus == 'pocket':
    step('corpora', 'properties', 'corpora/properties.ipynb', variant=request.corpus, inputs=dict(corpus=corpus),
         parameters=dict(preset=request.preset))
