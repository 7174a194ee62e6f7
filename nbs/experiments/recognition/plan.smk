# Isolated recognition. The embedded corpus has its own splits; real fingerspelling is scored by leaving one language out at a time.
corpus = f'corpora/prepare-{request.corpus}-s0'

if request.corpus == 'pocket':
    config = dict(preset=request.preset, settings=fields('signbook.recognition.isolated', 'IsolatedConfig'))
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

if request.corpus == 'fingerspelling':
    found = step('recognition', 'audit', 'recognition/letters_audit.ipynb', inputs=dict(corpus=corpus))
    # a network is chosen and weighed by the languages that are not tested; at smoke there is one to choose from
    systems = ['forest', 'flat'] if request.preset == 'smoke' else ['forest', 'thirds', 'attention', 'flat']
    inner = {name: step('recognition', 'inner', 'recognition/letters_inner.ipynb', variant=name, inputs=dict(corpus=corpus),
                        parameters=dict(system=name)) for name in systems}
    parts = {f'part{part}': step('recognition', 'outer', 'recognition/letters_outer.ipynb', variant=f'part{part}',
                                 inputs=dict(corpus=corpus, **inner), parameters=dict(part=part, parts=2,
                                 seeds=1 if request.preset == 'smoke' else 5)) for part in range(2)}
    step('recognition', 'tables', 'recognition/letters_tables.ipynb', inputs=dict(audit=found, **parts))
