"""Ascend NPUs: MindSpeed and torch_npu."""
