"""A network as a file for other runtimes: ONNX, OpenVINO and torch.export."""
