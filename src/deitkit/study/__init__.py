"""Measures findings of the paper again, on any folder of images.

`catalogue` has one module per study, `plan` turns a study into runs, `runner` trains them, `finding` decides
the claims and `summary` writes the results.
"""
