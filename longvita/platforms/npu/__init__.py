"""The Ascend platform: MindSpeed and torch_npu."""
