# SOKE. Tokenizers are trained once; every way of decoding is a generator of its own, and all of them are scored by one job.
if request.corpus == 'pocket':
    if request.preset == 'smoke': noisy('soke')   # wiring only: a rounding error decides what is said
    given = {}
    for module, name in (('tokenizer', 'TokenizerConfig'), ('generator', 'GeneratorConfig'), ('training', 'TrainingConfig')):
        given |= fields(f'signbook.soke.{module}', name)
    given, gpu = {name: value for name, value in given.items() if name != 'seed'}, int(request.preset == 'paper')
    told = dict(preset=request.preset, settings=given)
    sources = dict(sentences='corpora/prepare-pocket_sentences-s0', dictionary='corpora/prepare-pocket_dictionary-s0')
    judge = 'geosign/pretrain-main-s0'   # a translator of this corpus reads what is signed

    def tokenizer(target, variant='main', changed=None, **more):
        return step(target, 'tokenizer', 'soke/tokenizer.ipynb', variant=variant, inputs=dict(sentences=sources['sentences']), gpus=gpu,
                    parameters=dict(preset=request.preset, settings={**given, **(changed or {})}), **more)

    def generator(target, variant, tokens, variants, seed=0, **more):
        return step(target, 'generator', 'soke/generator.ipynb', variant=variant, seed=seed, inputs=dict(**sources, tokenizer=tokens), gpus=gpu,
                    parameters=dict(**told, variants=variants, seed=seed), **more)

    tokens = tokenizer('soke')
    modes = {'multihead': {'multihead + retrieval': dict(mode='multihead'), 'multihead': dict(mode='multihead', retrieved=0)},
             'others': {'parallel': dict(mode='parallel', retrieved=0), 'sequential': dict(mode='sequential', retrieved=0)}}
    scored = {}
    for seed in seeds:
        trained = {f'generator_{name}': generator('soke', name, tokens, variants, seed) for name, variants in modes.items()}
        scored[f's{seed}'] = step('soke', 'evaluate', 'soke/evaluate.ipynb', seed=seed, parameters=dict(seed=seed), gpus=gpu,
                                  inputs=dict(**sources, tokenizer=tokens, translator=judge, **trained))
    step('soke', 'tables', 'soke/tables.ipynb', inputs=scored)

    # Outside the default batch: larger and smaller codebooks, and one, two, three written languages.
    rows = {'codes_base': scored['s0'], 'languages_de-en-zh': scored['s0']}
    for size in (32, 64, 192) if request.preset != 'smoke' else (16,):
        codes = tokenizer('soke-ablations', f'codes{size}', dict(codes_body=size, codes_left=size, codes_right=size), by_default=False)
        rows[f'codes_{size}'] = step('soke-ablations', 'evaluate', 'soke/evaluate.ipynb', variant=f'codes{size}', by_default=False,
                                     inputs=dict(**sources, tokenizer=codes), parameters=dict())
    for languages in ('en', 'en-zh') if request.preset != 'smoke' else ('en',):
        trained = generator('soke-ablations', languages, tokens, {'multihead + retrieval': dict(mode='multihead', languages=languages)}, by_default=False)
        rows[f'languages_{languages}'] = step('soke-ablations', 'evaluate', 'soke/evaluate.ipynb', variant=languages, by_default=False,
            inputs=dict(**sources, tokenizer=tokens, translator=judge, generator=trained), parameters=dict(bounds=False))
    step('soke-ablations', 'tables', 'soke/ablation_tables.ipynb', by_default=False, inputs=rows)
