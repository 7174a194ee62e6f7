# Gloss to pose. Three models try for a short time on a part of the corpus; the order they come in is the order in which they are trained in full.
def settings(*classes):
    found = {}
    for module, name in classes: found |= fields(f'signbook.gloss2pose.{module}', name)
    return {name: value for name, value in found.items() if name != 'seed'}

if request.corpus == 'pocket':
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
