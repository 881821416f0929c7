"""The paper's findings, measured again on any folder of images.

`catalogue` describes each study; `plan` turns a description into runs, `runner` makes them, `summary`
and `finding` say what came out.
"""
