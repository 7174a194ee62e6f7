# Geo-Sign. One translator is pre-trained, and every variant is fine-tuned from it for the same number of steps.
def settings(*classes):
    found = {}
    for module, name in classes: found |= fields(f'signbook.geosign.{module}', name)
    return found

MODEL, TRAINING, STAGES = ('model', 'GeoSignConfig'), ('training', 'TrainingConfig'), ('pretraining', 'PretrainingConfig')

def changed_by(settings, changed): return {**{name: value for name, value in settings.items() if name not in changed}, **changed}

# Real corpora: every variant starts from `--set upstream=FILE` (a public checkpoint) or from the mT5 that language_model names.
if request.corpus in ('csl_daily', 'how2sign', 'openasl', 'wlasl'):
    corpus, evaluated = f'corpora/prepare-{request.corpus}-s0', {}
    for seed in seeds:
        for variant, changed in dict(unisign_steps=dict(manifold='none'), euclid_token=dict(manifold='euclidean', mode='token'),
                                     hyp_pooled=dict(manifold='poincare', mode='pooled'), hyp_token=dict(manifold='poincare', mode='token')).items():
            trained = step('geosign', 'finetune', 'geosign/finetune.ipynb', variant=variant, seed=seed, inputs=dict(corpus=corpus), gpus=1,
                           parameters=dict(preset=request.preset, variant=variant, settings=changed_by(settings(MODEL, TRAINING), changed), seed=seed))
            evaluated[f'{variant}_s{seed}'] = step('geosign', 'evaluate', 'geosign/evaluate.ipynb', variant=variant, seed=seed, gpus=1,
                inputs=dict(corpus=corpus, train=trained), parameters=dict(corpus=request.corpus, variant=variant, seed=seed))
    step('geosign', 'tables', 'geosign/tables.ipynb', inputs=evaluated)

# The corpus of stage 1: Uni-Sign alone.
if request.corpus == 'csl_news':
    step('geosign', 'pretrain', 'geosign/pretrain.ipynb', inputs=dict(corpus='corpora/prepare-csl_news-s0'), gpus=1,
         parameters=dict(preset=request.preset, settings=settings(MODEL, TRAINING, STAGES)))

if request.corpus == 'pocket':
    if request.preset == 'smoke': noisy('geosign')   # wiring only: a rounding error decides what is said
    given = settings(MODEL, TRAINING)
    shaped = {name: value for name, value in given.items() if name not in ('manifold', 'mode', 'seed')}
    corpus = step('geosign', 'prepare', 'geosign/prepare.ipynb', parameters=dict(preset=request.preset, settings={
        name: value for name, value in settings(TRAINING, STAGES).items() if name in ('fps', 'further')}))
    start = step('geosign', 'pretrain', 'geosign/pretrain.ipynb', inputs=dict(corpus=corpus), gpus=int(request.preset == 'paper'),
                 parameters=dict(preset=request.preset, settings={**shaped, **settings(STAGES)}))

    def scored(target, variant, trained, seed, **more):
        return step(target, 'evaluate', 'geosign/evaluate.ipynb', variant=variant, seed=seed, inputs=dict(corpus=corpus, train=trained), **more)

    def variant_of(target, variant, seed, changed, by_default=True, ablation=None):
        trained = step(target, 'finetune', 'geosign/finetune.ipynb', variant=variant, seed=seed, inputs=dict(corpus=corpus, start=start),
                       gpus=int(request.preset == 'paper'), by_default=by_default,
                       parameters=dict(preset=request.preset, variant=variant, settings={**shaped, **changed}, seed=seed))
        return trained, scored(target, variant, trained, seed, by_default=by_default,
                               parameters=dict(corpus=request.corpus, variant=variant, seed=seed, ablation=ablation or {}))

    variants = dict(unisign_steps=dict(manifold='none'), euclid_pooled=dict(manifold='euclidean', mode='pooled'),
                    euclid_token=dict(manifold='euclidean', mode='token'), hyp_pooled=dict(manifold='poincare', mode='pooled'),
                    hyp_token=dict(manifold='poincare', mode='token'))
    if request.preset == 'smoke': variants = {name: changed for name, changed in variants.items() if 'pooled' not in name}   # wiring only
    evaluated, trained = {'unisign_pose_s0': scored('geosign', 'unisign_pose', start, 0, parameters=dict(corpus=request.corpus, variant='unisign_pose'))}, {}
    for seed in seeds:
        for variant, changed in variants.items():
            trained[f'{variant}_s{seed}'], evaluated[f'{variant}_s{seed}'] = variant_of('geosign', variant, seed, changed)
    step('geosign', 'tables', 'geosign/tables.ipynb', inputs=evaluated)
    drawn = [variant for variant, changed in variants.items() if changed['manifold'] != 'none']
    step('geosign', 'geometry', 'geosign/geometry.ipynb', parameters=dict(umap=request.preset != 'smoke'),
         inputs={f'{variant}_s0': evaluated[f'{variant}_s0'] for variant in drawn} | {f'train_{variant}': trained[f'{variant}_s0'] for variant in drawn})

    # Outside the default batch: every row is the full model with one thing changed.
    token, pooled = (dict(manifold='poincare', mode=mode) for mode in ('token', 'pooled'))
    ablations = {f'curvature{c}': (dict(token, curvature=c), dict(field='curvature', value=c)) for c in (.001, .1, .5, 1., 2.)}
    ablations |= {f'alpha{alpha}': (dict(token, alpha=alpha), dict(field='alpha', value=alpha)) for alpha in (.1, .5, .9)}
    ablations |= {'attn': (dict(token, mode='attn'), dict(field='mode', value='attn')),
                  'lorentz': (dict(token, manifold='lorentz'), dict(field='manifold', value='lorentz')),
                  **{f'frechet{n}': (dict(pooled, iterations=n), dict(field='iterations', value=n)) for n in (1, 5, 50)}}
    rows = {'full': evaluated['hyp_token_s0']}
    for name, (changed, what) in ablations.items(): rows[name] = variant_of('geosign-ablations', name, 0, changed, False, what)[1]
    step('geosign-ablations', 'tables', 'geosign/ablation_tables.ipynb', by_default=False, inputs=rows)
