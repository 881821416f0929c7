"""A frozen network run fast: as one graph, through PyTorch, ONNX Runtime or OpenVINO.

`graph` makes a trained student one graph, `backends` runs any frozen network, `onnx_graph` writes ONNX,
`quantise` makes it int8, `choose` picks a backend, `device` says where it runs.
"""
