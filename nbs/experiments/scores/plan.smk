# Published predictions need no training: where the files are, they can be scored again.
if request.corpus == 'published_predictions':
    step('rescoring', 'tables', 'scores/rescoring.ipynb',
         parameters=files(request.corpus, 'take the prediction files that the authors of Uni-Sign published'))
