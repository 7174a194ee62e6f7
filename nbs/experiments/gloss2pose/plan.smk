# Gloss to pose. Three models try for a short time on a part of the corpus; the order they come in is the order in which they are trained in full.
def settings(*classes):
    found = {}
    for module, name in classes: found |= fields(f'signbook.gloss2pose.{module}', name)
    return {name: value for name, value in found.items() if name != 'seed'}

if request.corpus == 'pocket':
    if request.preset == 'smoke': noisy('gloss2pose')   # wiring only: a rounding error decides what is said
    given = settings(('models', 'ModelConfig'), ('losses', 'LossConfig'), ('training', 'TrainingConfig'))
    told, gpu = dict(preset=request.preset, settings=given), int(request.preset == 'paper')
    corpus = step('gloss2pose', 'prepare', 'gloss2pose/prepare.ipynb', parameters=dict(corpus='pocket', **told),
                  inputs=dict(sentences='corpora/prepare-pocket_sentences-s0', dictionary='corpora/prepare-pocket_dictionary-s0'))
    judge = step('gloss2pose', 'judge', 'gloss2pose/judge.ipynb', inputs=dict(corpus=corpus), parameters=dict(preset=request.preset), gpus=gpu)
    short = dict(smoke=dict(epochs=1, clips=48), laptop=dict(epochs=3, clips=400), paper=dict(epochs=10, clips=400))[request.preset]
    # --set model=… is a choice already made
    choices = {} if 'model' in given else dict(selection=step('gloss2pose', 'select', 'gloss2pose/select.ipynb', inputs=dict(corpus=corpus),
                                                              parameters=dict(**told, **short), gpus=gpu))
    scored, first = {}, {}
    for seed in seeds:
        trained = {f'train_{name}': step('gloss2pose', 'train', 'gloss2pose/train.ipynb', variant=name, seed=seed, gpus=gpu,
                                         inputs=dict(corpus=corpus, **choices), parameters=dict(**told, place=place, seed=seed))
                   for place, name in enumerate(('selected', 'second', 'third') if choices else ('selected',), 1)}
        first = first or trained
        scored[f's{seed}'] = step('gloss2pose', 'evaluate', 'gloss2pose/evaluate.ipynb', seed=seed, gpus=gpu,
                                  inputs=dict(corpus=corpus, judge=judge, **trained), parameters=dict(seed=seed))
    step('gloss2pose', 'tables', 'gloss2pose/tables.ipynb', inputs=dict(corpus=corpus, judge=judge, **choices, **scored, **first))

    # Outside the default batch: short trainings with one thing changed, see signbook.gloss2pose.ablations; a row about the clips has clips of its own.
    CLIPS = dict(not_mirrored=dict(mirrored=False), every_frame=dict(fps=25.), cropped=dict(fps=25., longer='crop'))
    ROWS = '''base no_velocity bones bones_in_frame acceleration no_shapes padded equal_hands no_length no_attention not_aligned counter own_frames
              teacher_forcing scheduled_sampling linear_schedule noise residual attached counter_fed_back counter_stops bf16 not_mirrored every_frame
              cropped transformer bert bert_seed_rate bert_two_rates'''.split() + ['fp16']*gpu
    if request.preset == 'smoke': ROWS = ['base', 'no_velocity']   # wiring only
    size, rows = dict(smoke=dict(epochs=1, clips=48), laptop=dict(epochs=6, clips=600), paper=dict(epochs=60, clips=0))[request.preset], {}
    for name in ROWS:
        own = corpus if name not in CLIPS else step('gloss2pose-ablations', 'prepare', 'gloss2pose/prepare.ipynb', variant=name, by_default=False,
            parameters=dict(corpus='pocket', preset=request.preset, settings={**given, **CLIPS[name]}),
            inputs=dict(sentences='corpora/prepare-pocket_sentences-s0', dictionary='corpora/prepare-pocket_dictionary-s0'))
        beside = dict(references=corpus) if name == 'not_mirrored' else {}
        rows[name] = step('gloss2pose-ablations', 'ablate', 'gloss2pose/ablate.ipynb', variant=name, by_default=False, gpus=gpu,
                          inputs=dict(corpus=own, judge=judge, **beside), parameters=dict(preset=request.preset, row=name, settings=given, **size))
    step('gloss2pose-ablations', 'tables', 'gloss2pose/ablation_tables.ipynb', by_default=False, inputs=rows)

# Real corpora: sentences of PHOENIX that are learnt by heart, words spelled from real letters, and iSign for those who have it.
if request.corpus in ('phoenix_skels', 'fingerspelling', 'isign'):
    given, optional = settings(('models', 'ModelConfig'), ('losses', 'LossConfig'), ('training', 'TrainingConfig')), request.corpus == 'fingerspelling'
    usual = dict(phoenix_skels=dict(target='skels50x3', epochs=120, patience=120, batch_size=5, learning_rate=3e-3, weight_decay=0.),
                 fingerspelling=dict(epochs=30, patience=30), isign={})[request.corpus]
    told, gpu = dict(preset=request.preset, settings={**usual, **given}), int(request.preset == 'paper')
    corpus = step('gloss2pose', 'prepare', 'gloss2pose/real.ipynb', variant=request.corpus, by_default=not optional,
                  parameters=dict(corpus=request.corpus, **told, **data(request.corpus)))
    # five sentences teach nobody to read
    judges = {} if request.corpus == 'phoenix_skels' else dict(judge=step('gloss2pose', 'judge', 'gloss2pose/judge.ipynb', by_default=not optional,
                                                                          inputs=dict(corpus=corpus), parameters=dict(preset=request.preset), gpus=gpu))
    trained = {f'train_{name}': step('gloss2pose', 'train', 'gloss2pose/train.ipynb', variant=name, by_default=not optional, inputs=dict(corpus=corpus), gpus=gpu,
                                     parameters=dict(preset=request.preset, settings=dict(told['settings'], model=name),
                                                     dev='train' if request.corpus == 'phoenix_skels' else 'dev'))
               for name in ('gru', 'transformer', 'bert')}
    scored = step('gloss2pose', 'evaluate', 'gloss2pose/evaluate.ipynb', by_default=not optional, inputs=dict(corpus=corpus, **judges, **trained),
                  parameters=dict(splits=['dev', 'train'] if request.corpus == 'phoenix_skels' else ['test']))
    step('gloss2pose', 'tables', 'gloss2pose/tables.ipynb', by_default=not optional, inputs=dict(corpus=corpus, **judges, **trained, s0=scored))
