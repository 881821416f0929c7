"""Teachers: frozen pretrained models with heads for the data's classes.

`spec` parses what `--teacher` takes, `sources` opens pretrained models, `fit` gives them heads (`classes`
for the pretrained one, `probe` and `finetune` for a new one), `teacher` runs them, `saved` keeps them.
"""
