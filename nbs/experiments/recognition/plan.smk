# Isolated recognition. The embedded corpus has its own splits; real fingerspelling is scored by leaving one language out at a time.
config = dict(preset=request.preset, settings=fields('signbook.recognition.isolated', 'IsolatedConfig'))
corpus = f'corpora/prepare-{request.corpus}-s0'

if request.corpus == 'pocket':
    scored = {}
    for seed in seeds:
        trained = step('recognition', 'train', 'recognition/train.ipynb', seed=seed, inputs=dict(corpus=corpus), parameters=dict(**config, seed=seed))
        scored[f'seed{seed}'] = step('recognition', 'evaluate', 'recognition/evaluate.ipynb', seed=seed,
                                     inputs=dict(corpus=corpus, train=trained), parameters=dict(preset=request.preset, seed=seed))
    size = dict(smoke=dict(glosses=20, epochs=2), laptop=dict(glosses=40, epochs=10), paper=dict(glosses=200, epochs=60))[request.preset]
    for field, values in dict(masking=['none', 'mask', 'pack'], features=['points', 'relative', 'shape']).items():
        scored[field] = step('recognition', 'ablate', 'recognition/ablate.ipynb', variant=field, inputs=dict(corpus=corpus),
                             parameters=dict(**config, field=field, values=values, **size))
    step('recognition', 'tables', 'recognition/tables.ipynb', inputs=dict(corpus=corpus, train=trained, **scored))
