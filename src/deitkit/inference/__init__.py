"""A frozen network run fast: as one graph, through PyTorch, ONNX Runtime or OpenVINO.

`joint_classifier` is a trained student as one graph. `backends` is the registry of what runs a network,
`selection` chooses among them. `onnx_graph` converts to ONNX, `int8` quantises, `device` is where it runs.
"""
